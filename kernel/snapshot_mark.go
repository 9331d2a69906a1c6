package kernel

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"msh/kernel/rawfile"
)

// While a machine is being saved it may stand still and be off its networks. If msh is
// killed then, criu lets the processes go on by itself; a note in the machine's
// directory has the next msh do the rest.

const savingFile = "saving"

type savingMark struct {
	Pid     int // of the msh that saves it
	Start   uint64
	Boot    string
	Stopped bool // it is frozen by msh
}

// mark writes the note, before anything of the machine is stopped.
func (v *saving) mark() error {
	b, err := json.Marshal(savingMark{os.Getpid(), startTime(os.Getpid()), bootID(), (len(v.all) > 1 || v.o.FilesOnly) && !v.state.Frozen})
	if err != nil {
		return err
	}
	return os.WriteFile(v.m.savingFile(), b, 0o600)
}

func (v *saving) unmark() { os.Remove(v.m.savingFile()) }

func (m *Machine) savingFile() string { return filepath.Join(m.Dir(), savingFile) }

// mend lets a machine go on that an msh that was killed has left standing.
func (m *Machine) mend(ctx context.Context) error {
	b, err := rawfile.Read(m.savingFile())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var mark savingMark
	if err == nil && json.Unmarshal(b, &mark) == nil && mark.Boot == bootID() && startTime(mark.Pid) == mark.Start {
		return nil // it is at it
	}
	if err != nil {
		return err
	}
	v := &saving{snapshot: &snapshot{ctx: ctx}, m: m, stopped: mark.Stopped}
	var errs []error
	for _, n := range m.Netifs() {
		p, err := m.heldPort(n)
		if err == nil {
			v.ports = append(v.ports, p)
		}
		errs = append(errs, err)
	}
	v.goOn()
	errs = append(errs, os.Remove(m.savingFile()))
	return errors.Join(errs...)
}
