package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/checkpoint"
	"msh/kernel/handover"
)

// A layer is a directory that is the root of machines, below what each has changed.
// On the way to another host it is known by a digest of its names, kinds, modes,
// owners, sizes, times, link targets, extended attributes, and of what is in its files:
// all of it where they are small, as those are that people change by hand; of a large
// one its first and last bytes, which with size and time are a program's or library's
// own. So two that have one digest are the same but for who means to deceive.

// layersDir is where roots that came from other hosts are kept, by their digests. A
// machine that stands on one may move on.
func (h *Host) layersDir() string {
	if h.State == DefaultState {
		return "/var/lib/msh/layers" // DefaultState is in memory
	}
	return filepath.Join(h.State, ".layers")
}

// layerPrefix tells how the digest was made.
const layerPrefix = "tree2-sha256:"

// Of files up to smallFile bytes all is read, of others so much at either end.
const (
	smallFile = 64 << 10
	largeEnds = 4 << 10
)

// layerDigest tells whether two directories are the same layer. The root of the host
// has no digest: it is what it is on each.
func layerDigest(ctx context.Context, dir string) (string, error) {
	if filepath.Clean(dir) == "/" {
		return "", nil
	}
	d := &treeDigest{Hash: sha256.New(), names: make([]byte, 64<<10), value: make([]byte, 64<<10)} // XATTR_LIST_MAX, XATTR_SIZE_MAX
	if err := d.tree(ctx, dir); err != nil {
		return "", fmt.Errorf("look through %s: %w", dir, err)
	}
	return layerPrefix + hex.EncodeToString(d.Sum(nil)), nil
}

// treeDigest is that of a layer, while it is made.
type treeDigest struct {
	hash.Hash
	names, value []byte // room for extended attributes
}

func (d *treeDigest) tree(ctx context.Context, dir string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		size, mtime, target := st.Size, st.Mtim.Nano(), ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			// What is mounted below is not part of it, but gives a directory another time.
			size, mtime = 0, 0
		case unix.S_IFLNK:
			if target, err = os.Readlink(path); err != nil {
				return err
			}
		case unix.S_IFSOCK:
			size, mtime = 0, 0 // it is nobody's any more
		}
		fmt.Fprintf(d, "%q %o %d %d %d %d %d %q\n", rel, st.Mode, st.Uid, st.Gid, size, st.Rdev, mtime, target)
		if err := d.xattrs(path); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			return d.contents(path, size)
		}
		return nil
	})
}

func (d *treeDigest) contents(path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if size <= smallFile {
		_, err = io.Copy(d, io.LimitReader(f, smallFile))
		return err
	}
	for _, at := range []int64{0, size - largeEnds} {
		if _, err := io.Copy(d, io.NewSectionReader(f, at, largeEnds)); err != nil {
			return err
		}
	}
	return nil
}

// xattrs reads a file's extended attributes, capabilities among them. Those of
// security modules are each host's own.
func (d *treeDigest) xattrs(path string) error {
	n, err := unix.Llistxattr(path, d.names)
	if err == unix.ENOTSUP || err == nil && n == 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("attributes of %s: %w", path, err)
	}
	names := strings.Split(strings.TrimSuffix(string(d.names[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if strings.HasPrefix(name, "security.") && name != "security.capability" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, d.value)
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return fmt.Errorf("attribute %s of %s: %w", name, path, err)
		}
		fmt.Fprintf(d, "%q %q\n", name, d.value[:n])
	}
	return nil
}

// layerName is the name of the only machine in a layer on its way: it is sent as a
// snapshot that has nothing but an upper layer.
const layerName = "layer"

// sendLayer writes a directory.
func sendLayer(ctx context.Context, dir string, out io.Writer) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	w, err := checkpoint.NewWriter(out, checkpoint.Options{})
	if err != nil {
		return err
	}
	m := &checkpoint.Manifest{Machines: []checkpoint.Machine{{Name: layerName, Mode: checkpoint.FilesOnly}}}
	if err := w.Manifest(m); err != nil {
		return err
	}
	if err := w.Upper(ctx, layerName, fd); err != nil {
		return err
	}
	_, err = w.Commit()
	return err
}

// layerAt is where a layer of that digest is on this host: where it was there, or
// where one that came is kept; "" where it is not.
func (h *Host) layerAt(ctx context.Context, l handover.Layer) string {
	for _, dir := range []string{l.Name, h.keptLayer(l.Digest)} {
		if st, err := os.Stat(dir); dir == "" || err != nil || !st.IsDir() || h.apart && dir == l.Name {
			continue
		}
		if got, err := layerDigest(ctx, dir); err == nil && got == l.Digest {
			return dir
		}
	}
	return ""
}

// keptLayer is the directory of a layer that came, "" for a digest that is none.
func (h *Host) keptLayer(digest string) string {
	sum, ok := strings.CutPrefix(digest, layerPrefix)
	if !ok || len(sum) != sha256.Size*2 || strings.Trim(sum, "0123456789abcdef") != "" {
		return ""
	}
	return filepath.Join(h.layersDir(), sum)
}

// takeLayer unpacks a layer that comes, and keeps it if it is what was said.
func (h *Host) takeLayer(ctx context.Context, l handover.Layer, in io.Reader) (dir string, err error) {
	dir = h.keptLayer(l.Digest)
	if dir == "" {
		return "", fmt.Errorf("layer %s: digest %q: not one of a directory", l.Name, Short(l.Digest))
	}
	tmp, err := os.MkdirTemp(h.layersDir(), "new-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := unpackLayer(ctx, tmp, in); err != nil {
		return "", fmt.Errorf("layer %s: %w", l.Name, err)
	}
	got, err := layerDigest(ctx, tmp)
	if err != nil {
		return "", err
	}
	if got != l.Digest {
		return "", fmt.Errorf("layer %s: it changed on the way, or while it was sent: digest %s, want %s", l.Name, got, l.Digest)
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return "", err
	}
	return dir, os.RemoveAll(tmp) // there where another one was quicker
}

func unpackLayer(ctx context.Context, dir string, in io.Reader) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := checkpoint.NewReader(in)
	if err != nil {
		return err
	}
	defer r.Close()
	if r.Manifest().Machine(layerName) == nil {
		return fmt.Errorf("no layer in it: %w", checkpoint.ErrHostile)
	}
	for {
		s, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil && s.Name == checkpoint.SectionUpper {
			err = r.UnpackUpper(ctx, fd, checkpoint.UnpackOptions{Devices: true})
		}
		if err != nil {
			return err
		}
	}
}

// holdLayers keeps layers that came from being swept until the file is closed: one that
// has just come stands under no machine yet.
func (h *Host) holdLayers() (*os.File, error) {
	if err := os.MkdirAll(h.layersDir(), 0o700); err != nil {
		return nil, explainState(err)
	}
	f, err := os.Open(h.layersDir())
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// sweepLayers removes layers that came and that no machine stands on any more, and
// what is half there.
func (h *Host) sweepLayers() error {
	lock, err := os.Open(h.layersDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	return h.sweepLayersBy(lock)
}

// sweepLayersBy is sweepLayers by who may hold them itself.
func (h *Host) sweepLayersBy(lock *os.File) error {
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil // something is on its way
	}
	entries, err := os.ReadDir(h.layersDir())
	if err != nil || len(entries) == 0 {
		os.Remove(h.layersDir())
		return err
	}
	all, err := h.Machines()
	if err != nil {
		return err
	}
	var used []string
	for _, m := range all {
		if r, ok := m.Spec().find("root").(*Root); ok {
			used = append(used, filepath.Clean(r.Source))
		}
		m.close()
	}
	var errs []error
	for _, e := range entries {
		if dir := filepath.Join(h.layersDir(), e.Name()); !slices.Contains(used, dir) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	os.Remove(h.layersDir())
	return errors.Join(errs...)
}
