package kernel

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
)

// Nearly all of a machine's memory is in criu's files of pages, which only grow, one
// after the other. They are written while criu is at it: sections "pages-1", "pages-2",
// … in front of "memory", which has the rest.

const sectionPages = "pages-"

// writePages writes the files of pages until the dump has ended. What is written is
// not needed any more.
func (v *saving) writePages() error {
	for n := 1; ; n++ {
		g := &growing{v: v, next: pagesName(n + 1)}
		if err := g.open(pagesName(n)); g.file == nil {
			return err
		}
		err := v.writePagesOf(g, fmt.Sprintf("%s%d", sectionPages, n))
		g.file.Close()
		if err != nil {
			return err
		}
		if err := unix.Unlinkat(int(v.images.Fd()), pagesName(n), 0); err != nil {
			return fmt.Errorf("unlink %s: %w", pagesName(n), err)
		}
	}
}

// pagesName is criu's name for the nth file.
func pagesName(n int) string { return fmt.Sprintf("pages-%d.img", n) }

func (v *saving) writePagesOf(g *growing, section string) error {
	if err := v.step("write its memory, " + section); err != nil {
		return err
	}
	out, err := v.w.Stream(v.ctx, v.m.Name(), section)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, g); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// growing reads a file of pages that criu may still be writing: it is whole when there
// is the next one, or the dump has ended.
type growing struct {
	v    *saving
	next string
	file *os.File
}

// patienceForPages is how long is waited for more of it.
const patienceForPages = 500 * time.Microsecond

// open waits for the file; there is none where the dump has ended without one.
func (g *growing) open(name string) error {
	for {
		ended := g.ended()
		fd, err := unix.Openat(int(g.v.images.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err == nil {
			g.file = os.NewFile(uintptr(fd), name)
			return nil
		}
		if err != unix.ENOENT {
			return fmt.Errorf("open %s: %w", name, err)
		}
		if ended {
			return nil
		}
		time.Sleep(patienceForPages)
	}
}

func (g *growing) ended() bool {
	select {
	case <-g.v.reached:
		return true
	default:
		return false
	}
}

// whole tells whether nothing will be added to the file.
func (g *growing) whole() bool {
	return g.ended() || unix.Faccessat(int(g.v.images.Fd()), g.next, unix.F_OK, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// Read is an io.Reader's.
func (g *growing) Read(b []byte) (int, error) {
	for {
		whole := g.whole()
		n, err := g.file.Read(b)
		if n > 0 || !errors.Is(err, io.EOF) || whole {
			return n, err
		}
		time.Sleep(patienceForPages)
	}
}

// unpackPages unpacks such a file, to be put among the images when those come.
func (w *waking) unpackPages(r *checkpoint.Reader, section string) error {
	if err := w.makeWork(); err != nil {
		return err
	}
	name := "pages-" + strings.TrimPrefix(section, sectionPages) + ".img"
	fd, err := unix.Openat(w.work, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	defer unix.Close(fd)
	w.pages = append(w.pages, name)
	return r.UnpackFile(w.ctx, fd)
}
