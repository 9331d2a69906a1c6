//go:build !amd64

package escape

func by32bit(*Target) error { return absent("no 32-bit calls from 64-bit code") }

func byX32(*Target) error { return absent("x32 is amd64's") }
