package escape

import (
	"fmt"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

func int80(nr, a, b, c uintptr) uintptr

// keyctl(2) is guarded by no capability: what refuses it is a filter. On a kernel
// without the 32-bit entry the instruction faults.
func by32bit(*Target) (err error) {
	debug.SetPanicOnFault(true)
	defer func() {
		if recover() != nil {
			err = absent("no 32-bit calls on this kernel")
		}
	}()
	const keyctl = 288
	return foreign("int 0x80", int80(keyctl, getKeyring, session, 0))
}

func byX32(*Target) error {
	const x32 = 1 << 30
	r, _, errno := unix.RawSyscall(x32+unix.SYS_KEYCTL, getKeyring, session, 0)
	if errno != 0 {
		r = -uintptr(errno)
	}
	return foreign("x32", r)
}

const (
	getKeyring = 0               // KEYCTL_GET_KEYRING_ID
	session    = ^uintptr(3) + 1 // KEY_SPEC_SESSION_KEYRING, -3
)

// foreign tells what a call by another ABI has returned.
func foreign(abi string, result uintptr) error {
	switch errno := unix.Errno(-result); {
	case int(result) >= 0 || int(result) < -4095:
		return nil
	case errno == unix.ENOSYS:
		return absent("no %s on this kernel", abi)
	default:
		return fmt.Errorf("by %s: %w", abi, errno)
	}
}
