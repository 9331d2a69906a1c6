package kernel

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
	"msh/kernel/criu"
)

// unpack reads the snapshot to its end, into memory.
func (wk *wake) unpack(r *checkpoint.Reader) error {
	for {
		s, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		w := wk.all[slices.IndexFunc(wk.all, func(w *waking) bool { return w.saved.Name == s.Machine })]
		switch {
		case s.Name == sectionState:
			err = readSection(r, &w.state)
		case s.Name == sectionLogs:
			err = readSection(r, &w.logs)
		case s.Name == checkpoint.SectionUpper:
			err = w.unpackUpper(r)
		case strings.HasPrefix(s.Name, checkpoint.SectionTree):
			err = w.unpackTmpfs(r, s.Name)
		case strings.HasPrefix(s.Name, sectionPages):
			err = w.unpackPages(r, s.Name)
		case s.Name == checkpoint.SectionMemory || strings.HasPrefix(s.Name, checkpoint.SectionMemory+"."):
			err = w.unpackImages(r, s.Name)
		case s.Name == sectionPassed && wk.o.pass != nil:
			wk.o.pass.drain()
			return wk.unpacked()
		}
		if err != nil {
			return fmt.Errorf("%s of %s: %w", s.Name, s.Machine, err)
		}
	}
	for _, w := range wk.all {
		if w.saved.Mode == checkpoint.MemoryAndFiles && w.images == nil {
			return fmt.Errorf("machine %s: no memory in it: %w", w.saved.Name, checkpoint.ErrHostile)
		}
	}
	return wk.unpacked()
}

// unpacked takes in what has been read of the machines.
func (wk *wake) unpacked() error {
	for _, w := range wk.all {
		if err := errors.Join(w.pinIDs(), w.checkConfined()); err != nil {
			return err
		}
		if root, _ := w.spec.find("root").(*Root); root != nil {
			if err := checkUsed(root.Source, w.state.Used); err != nil {
				return fmt.Errorf("machine %s: %w", w.saved.Name, err)
			}
		}
	}
	return nil
}

// readyImages has the images be as criu shall find them, once they are there.
func (w *waking) readyImages() error {
	if w.o.pass != nil {
		var err error
		if w.work, w.images, err = w.o.pass.take(w.ctx); err != nil {
			return err
		}
	}
	if err := criu.Populate(w.images); err != nil {
		return err
	}
	if w.plan.Uname != nil { // they ask by the filter that criu has
		if err := criu.DropAsking(w.images); err != nil {
			return fmt.Errorf("have uname calls ask anew: %w", err)
		}
	}
	return w.giveImages()
}

// giveImages lets criu read the images as whoever it is in a user namespace that has
// no map yet. They lie in a mount that nobody else can reach.
func (w *waking) giveImages() error {
	if len(w.state.IDs) == 0 || w.work < 0 {
		return nil
	}
	return filepath.WalkDir(fmt.Sprintf("/proc/self/fd/%d/", w.work), func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Chmod(path, 0o755)
		case d.Type().IsRegular():
			return os.Chmod(path, 0o644)
		}
		return nil
	})
}

// unpackImages unpacks memory, each round into a directory of its own beside the
// others, as criu's links between them have it.
func (w *waking) unpackImages(r *checkpoint.Reader, section string) error {
	if err := w.makeWork(); err != nil {
		return err
	}
	dir, err := makeDirAt(w.work, section)
	if err != nil {
		return err
	}
	if err := r.UnpackImages(w.ctx, int(dir.Fd()), checkpoint.UnpackOptions{}); err != nil {
		dir.Close()
		return err
	}
	if section != checkpoint.SectionMemory {
		return dir.Close()
	}
	w.images = dir
	for _, name := range w.pages {
		if err := unix.Renameat2(w.work, name, int(dir.Fd()), name, unix.RENAME_NOREPLACE); err != nil {
			return fmt.Errorf("rename %s: %w", name, err)
		}
	}
	return nil
}

// makeWork makes memory for the images.
func (w *waking) makeWork() (err error) {
	if w.work < 0 {
		w.work, err = newTmpfs(0, "mode", "700")
	}
	return err
}

// unpackUpper unpacks the upper layer: into the memory that the overlay will have,
// or beside what is under root(upper=), to be put in its place at the end.
func (w *waking) unpackUpper(r *checkpoint.Reader) error {
	root, _ := w.spec.find("root").(*Root)
	if root == nil || root.Write != "overlay" {
		return fmt.Errorf("its root has none: %w", checkpoint.ErrHostile)
	}
	// Device nodes can be made by a root in the machine only where it has the ids of
	// the host's, and there it could make them again.
	o := checkpoint.UnpackOptions{Devices: !w.spec.Has("uidspace"), Xattr: overlayXattr, MaxBytes: root.Size}
	if root.Upper != "" {
		if err := os.Mkdir(w.aside, 0o700); err != nil {
			return withHint(err, "the directory that its changes are kept under has to be there")
		}
		to := filepath.Join(w.aside, asideNew)
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		dir, err := os.Open(to)
		if err != nil {
			return err
		}
		defer dir.Close()
		return r.UnpackUpper(w.ctx, int(dir.Fd()), o)
	}
	fd, err := newTmpfs(0, append(room(root.Size), "mode", "755")...)
	if err != nil {
		return err
	}
	w.layers = fd
	dir, err := makeDirAt(fd, "upper")
	if err != nil {
		return err
	}
	defer dir.Close()
	return r.UnpackUpper(w.ctx, int(dir.Fd()), o)
}

// overlayXattr passes over what an overlay notes of the lower layer's own inodes:
// they are others on another host, and the notes are optional.
func overlayXattr(name string) string {
	switch name {
	case "trusted.overlay.origin", "user.overlay.origin", "trusted.overlay.uuid", "user.overlay.uuid", "trusted.overlay.nlink", "user.overlay.nlink":
		return ""
	}
	return name
}
