package kernel

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The upper layer of a woken machine with root(upper=DIR) is unpacked aside, in a
// directory beside DIR/upper whose name is in the note of the waking, and takes its
// place when all of the snapshot has been found whole:
//
//	before          unpacked          in its place      awake
//	DIR/upper       DIR/upper         ASIDE/old         DIR/upper.before
//	                ASIDE/new         DIR/upper         DIR/upper
//
// Up to the last of these it can be put back, from wherever it was left.
const (
	asideNew = "new"
	asideOld = "old"
)

// newAside makes up the name of such a directory.
func newAside(dir string) string { return filepath.Join(dir, ".waking-"+rand.Text()) }

// replaceUpper puts what was unpacked in its place.
func (t *Txn) replaceUpper(root *Root) error {
	if err := t.step("put the upper layer under " + root.Upper); err != nil {
		return err
	}
	upper, old := filepath.Join(root.Upper, "upper"), filepath.Join(t.wake.aside, asideOld)
	err := os.Rename(upper, old)
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Mkdir(old, 0o755)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(t.wake.aside, asideNew), upper); err != nil {
		return err
	}
	if err := t.step("make its work directory anew"); err != nil {
		return err
	}
	// What an overlay has left in there is of the other upper layer.
	work := filepath.Join(root.Upper, "work")
	if err := os.RemoveAll(work); err != nil {
		return err
	}
	return os.Mkdir(work, 0o755)
}

// putUpperBack has the upper layer be as it was, and nothing be left aside.
func putUpperBack(aside string) error {
	upper, unpacked, old := filepath.Join(filepath.Dir(aside), "upper"), filepath.Join(aside, asideNew), filepath.Join(aside, asideOld)
	if exists(old) {
		if !exists(unpacked) && exists(upper) {
			if err := os.Rename(upper, unpacked); err != nil {
				return fmt.Errorf("put the upper layer back: %w", err)
			}
		}
		if err := os.Rename(old, upper); err != nil {
			return fmt.Errorf("put the upper layer back: %w", err)
		}
	}
	return os.RemoveAll(aside)
}

// keepUpper ends it where the machine is awake: what was there stays as upper.before,
// in the place of an earlier one, if there was anything in it.
func keepUpper(aside string) error {
	old, before := filepath.Join(aside, asideOld), filepath.Join(filepath.Dir(aside), "upper.before")
	if os.Remove(old) == nil {
		return os.RemoveAll(aside)
	}
	if err := os.RemoveAll(before); err != nil {
		return err
	}
	if err := os.Rename(old, before); err != nil {
		return err
	}
	return os.RemoveAll(aside)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// each does it to all, whatever becomes of one.
func each(all []string, do func(string) error) error {
	var errs []error
	for _, s := range all {
		errs = append(errs, do(s))
	}
	return errors.Join(errs...)
}
