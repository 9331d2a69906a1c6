package escape

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func ioctlByte(fd int, request uint, b *byte) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(b))); errno != 0 {
		return errno
	}
	return nil
}

// call is a system call with plain numbers.
func call(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	if _, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
		return errno
	}
	return nil
}
