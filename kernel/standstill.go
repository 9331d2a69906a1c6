package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/rawfile"
)

// While machines are being saved they stand still and are off their networks. Why,
// is written in a note in their lab's directory before they do, so that who finds it
// knows what is to become of them when the msh that has stopped them is dead:
//
//	the note says                      its msh has died
//	that they are saved                they go on (mend)
//	that they are to end               they end: they are in a file, or on another host
//	that they are being woken          they end: they are in a file yet
//	that they may run elsewhere        they stand still until that is known (settle, TakeBack)
//
// Machines that are saved at one instant have one note, and so one fate.

// standstill is such a note.
type standstill struct {
	Pid      int // of the msh that is at it; 0 for none any more
	Start    uint64
	Boot     string
	Machines []string
	Stopped  []string `json:",omitempty"` // those that it freezes, by their control groups
	Nets     []string `json:",omitempty"` // networks that are made with machines that are woken
	Asides   []string `json:",omitempty"` // of the upper layers that are being replaced: see newAside
	End      bool     `json:",omitempty"`
	Waking   bool     `json:",omitempty"`
	// Token and To: they may run on another host, which has to be asked under that
	// token.
	Token string  `json:",omitempty"`
	To    *Remote `json:",omitempty"`

	file string
}

// stillDir is where a lab has them.
const stillDir = ".still"

func (h *Host) stillDir(lab string) string { return filepath.Join(h.State, lab, stillDir) }

// stills reads the notes of a lab.
func (h *Host) stills(lab string) (all []*standstill, err error) {
	entries, err := os.ReadDir(h.stillDir(lab))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") { // being written
			continue
		}
		n := &standstill{file: filepath.Join(h.stillDir(lab), e.Name())}
		b, err := rawfile.Read(n.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = json.Unmarshal(b, n)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", n.file, err)
		}
		all = append(all, n)
	}
	return all, nil
}

// still is the note that names the machine, nil for none.
func (m *Machine) still() (*standstill, error) {
	all, err := m.host.stills(m.labID)
	if i := slices.IndexFunc(all, func(n *standstill) bool { return slices.Contains(n.Machines, m.Name()) }); i >= 0 {
		return all[i], err
	}
	return nil, err
}

// InDoubt is the host that the machine may run on already, after a move that broke off
// where nobody could know; "" for a machine of which it is known.
func (m *Machine) InDoubt() string {
	if n, err := m.still(); err == nil && n != nil && n.inDoubt() && !n.alive() {
		return n.To.String()
	}
	return ""
}

// newStandstill writes the note of machines that this msh is about to stop. None of
// them may be in another.
func (h *Host) newStandstill(lab string, n *standstill) error {
	n.sign()
	unlock, err := h.lockStills(lab)
	if err != nil {
		return err
	}
	defer unlock()
	all, err := h.stills(lab)
	if err != nil {
		return err
	}
	for _, o := range all {
		for _, name := range n.Machines {
			if slices.Contains(o.Machines, name) {
				return o.inTheWay("stop", name)
			}
		}
	}
	// One msh may save several at a time, but a machine is in one note only.
	n.file = filepath.Join(h.stillDir(lab), fmt.Sprintf("%d.%s", n.Pid, n.Machines[0]))
	return n.save()
}

// lockStills makes the directory of notes and locks it.
func (h *Host) lockStills(lab string) (unlock func(), err error) {
	path := h.stillDir(lab)
	for {
		if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		d, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the last note's end has removed it in between
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
			d.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		var a, b unix.Stat_t
		if unix.Fstat(int(d.Fd()), &a) == nil && unix.Stat(path, &b) == nil && a.Ino == b.Ino {
			return func() {
				os.Remove(path) // if it is empty
				d.Close()
			}, nil
		}
		d.Close()
	}
}

// save writes the note, whole or not at all.
func (n *standstill) save() error {
	b, err := json.Marshal(n)
	if err != nil {
		return err
	}
	dir, name := filepath.Split(n.file)
	tmp := dir + "." + name
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, n.file)
}

// drop removes the note: nothing of what it says holds any more.
func (n *standstill) drop() error {
	if n.file == "" {
		return nil // it was never written
	}
	err := os.Remove(n.file)
	os.Remove(filepath.Dir(n.file)) // if it is empty
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// inDoubt tells whether nobody knows where they run.
func (n *standstill) inDoubt() bool { return n.Token != "" && !n.End }

// alive tells whether an msh is at it.
func (n *standstill) alive() bool {
	return n.Pid != 0 && n.Boot == bootID() && startTime(n.Pid) == n.Start
}

// sign has this msh be the one that is at it.
func (n *standstill) sign() { n.Pid, n.Start, n.Boot = os.Getpid(), startTime(os.Getpid()), bootID() }

// leave has nobody be at it.
func (n *standstill) leave() error {
	n.Pid, n.Start, n.Boot = 0, 0, ""
	return n.save()
}

// inTheWay is the error of doing something to a machine of the note.
func (n *standstill) inTheWay(what, name string) error {
	switch {
	case n.inDoubt() && n.alive():
		return withHint(fmt.Errorf("%s %s: it may run on %s: msh, process %d, is moving it there", what, name, n.To, n.Pid), "wait for its end")
	case n.inDoubt():
		return withHint(fmt.Errorf("%s %s: it may run on %s already: a move broke off where nobody could know", what, name, n.To),
			fmt.Sprintf("`msh migrate %s %s` finds out; if that host never comes back, `msh migrate --take-back %s` lets it go on here", n.subject(), n.To, name))
	}
	doing := "saving"
	if n.Waking {
		doing = "waking"
	}
	return withHint(fmt.Errorf("%s %s: another msh, process %d, is %s it", what, name, n.Pid, doing), "wait for its end")
}

// subject is what `msh migrate` is told to ask for all of them.
func (n *standstill) subject() string {
	if len(n.Machines) == 1 {
		return n.Machines[0]
	}
	return filepath.Base(filepath.Dir(filepath.Dir(n.file))) // their lab
}
