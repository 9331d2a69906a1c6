package stage0

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// SealedFile returns a memory file with that content which nobody can change
// any more, not even through /proc/PID/exe (CVE-2019-5736).
func SealedFile(name string, content []byte) (int, error) {
	// MFD_EXEC is asked for since vm.memfd_noexec may be 1; kernels before 6.3
	// do not know it.
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd_create %s: %w", name, err)
	}
	if err := writeAll(fd, content); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("write %s: %w", name, err)
	}
	// The mode as well, which Linux can since 6.3: without its x bits, for which any
	// root of the same ids could ask by that path, nobody could execute it again.
	const seals, mode = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE, unix.F_SEAL_EXEC
	_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals|mode)
	if errors.Is(err, unix.EINVAL) {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("seal %s: %w", name, err)
	}
	return fd, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// ImageName is what the memory file is called that Executable makes.
const ImageName = "msh-stage0"
