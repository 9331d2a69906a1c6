package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"msh/kernel/criu"
)

// SnapshotError says what cannot be saved.
type SnapshotError struct {
	Machine  string
	Problems []criu.Problem
}

func (e *SnapshotError) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteString("; ")
		}
		if i == maxProblems {
			fmt.Fprintf(&b, "and %d more", len(e.Problems)-i)
			break
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// maxProblems are named.
const maxProblems = 5

// Hint is what helps against the first of them.
func (e *SnapshotError) Hint() string {
	for _, p := range e.Problems {
		if p.Mend != "" {
			return p.Mend
		}
	}
	return ""
}

// preflight finds out, while all runs, what cannot be saved.
func (s *snapshot) preflight() error {
	var find sync.WaitGroup // its first look at a criu starts that
	var missing error
	if !s.o.FilesOnly {
		find.Go(func() { s.criu, missing = criu.Find(s.ctx) })
	}
	defer find.Wait()
	lab := s.all[0].m.labID
	for _, v := range s.all {
		if v.m.labID != lab {
			return bad("snapshot", "m", v.m.ID(), "machines of one lab, "+lab)
		}
		if err := v.m.alive(); err != nil {
			return err
		}
		if err := s.step("look through its processes"); err != nil {
			return err
		}
		if err := v.m.free(s.ctx, s.verb()); err != nil {
			return err
		}
		if err := v.m.savable(s.o.FilesOnly); err != nil {
			return err
		}
		if err := v.look(); err != nil {
			return err
		}
	}
	if _, err := s.cables(); err != nil {
		return err
	}
	if s.o.FilesOnly {
		return nil
	}
	if find.Wait(); missing != nil {
		return missing
	}
	s.all[0].m.host.keepFacts(s.criu)
	for _, v := range s.all {
		all, err := v.m.group.Pids()
		if err == nil {
			err = dismissShepherds(all)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// savedKinds are the resources that wake again as they were. Of others nobody has
// seen it yet, so that a machine with one is refused rather than woken without it.
var savedKinds = []string{"cpu", "memory", "pids", "io", "children", "uidspace", "cgroupspace", "timespace", "ipcspace",
	"netspace", "netif", "mountspace", "root", "pidspace", "mount", "uname", "sysctl", "rlimit", "security", "device", "view", "netaddr", "routes"}

// savable tells whether a machine of that kind can be saved at all.
func (m *Machine) savable(filesOnly bool) error {
	refuse := func(got, want, mend string) error {
		return &ParamError{Kind: "snapshot", Got: got, Want: want, Mend: mend}
	}
	spec := m.Spec()
	if !m.parent.isHost() {
		return refuse(m.Name()+", which is a machine inside "+m.parent.Name(), "a machine of the host's", "")
	}
	if children := m.inside(); len(children) > 0 {
		return refuse(m.Name()+", which has machines inside it: "+strings.Join(children, " "), "a machine with none", "destroy them first")
	}
	root, _ := spec.find("root").(*Root)
	if root == nil {
		return refuse(m.Name()+", which has no root of its own: its files are all of the host's", "a machine with a root", `make it with root("/")`)
	}
	if m.self.User && !filesOnly {
		return refuse(m.Name()+", which is an ordinary user's", "a machine of root's: CRIU needs root", "run msh as root, or save the files only (files_only=True)")
	}
	if root.Layers != nil {
		return refuse(fmt.Sprintf("%s, an ordinary user's, whose root %s has mounts in it and so is made of many overlays", m.Name(), root.Source), "a root of one overlay", "run msh as root, or give it a directory without mounts in it, as an image's root is")
	}
	if filesOnly && root.Write != "overlay" {
		return refuse("files_only of "+m.Name()+`, which has no files of its own`, `a machine whose root is written as an overlay`, `root(…, write="overlay")`)
	}
	for _, r := range spec.Resources {
		if !slices.Contains(savedKinds, r.Kind()) {
			return refuse(m.Name()+", which has "+r.Kind()+"(…)", "a machine without: that cannot be saved", "")
		}
		if n, ok := r.(*Netif); ok && n.Device != "" {
			return refuse(fmt.Sprintf("%s, whose interface %s is the host's %s", m.Name(), n.Name, n.Device), "interfaces on a vnet", "")
		}
	}
	if c := m.confinement(); !filesOnly && c != nil && len(c.Fences) > 0 {
		return refuse(m.Name()+", whose programs are fenced in by Landlock, which the kernel lets nobody read or put back", "a machine of at most level 2, without landlock=", "save the files only (files_only=True): its init starts anew, in the fence")
	}
	if filesOnly && root.Upper == "" && !spec.Has("pidspace") {
		return refuse(m.Name()+", whose changes are in memory that nobody but it can reach", "a machine with a PID space, or its changes in a directory", "make it with pidspace(), or root(…, upper=DIR)")
	}
	if made, err := m.madeInside(); !filesOnly && (err != nil || len(made) > 0) {
		if err != nil {
			return err
		}
		return refuse(fmt.Sprintf("%s, in which somebody has made %s", m.Name(), strings.Join(made, ", ")), "a network with nothing in it but what msh has given it", "delete it first, by ip link or nft; or save the files only (files_only=True)")
	}
	if !filesOnly && !spec.Has("pidspace") {
		return refuse(m.Name()+", whose processes have numbers of the host's, which may be another's when it wakes", "a machine with a PID space", "make it with pidspace(), or save the files only (files_only=True)")
	}
	return nil
}

// inside lists the machines inside one, whoever has made them.
func (m *Machine) inside() []string {
	all := m.Children()
	names, _ := m.host.dirs(filepath.Dir(m.Dir()))
	for _, name := range names {
		c := with(&Spec{Name: name}, &Machine{host: m.host, labID: m.labID})
		var r record
		if c.readRecord(&r) == nil && r.Parent == m.Name() && !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// strangers are processes in the machine that its init has nothing to do with:
// criu saves init and its descendants, and the others would be lost.
func strangers(pids []int) (found []criu.Problem) {
	parent := map[int]int{}
	names := map[int]string{}
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue // it has just ended
		}
		parent[pid] = int(statField(b, 1))
		if i, j := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')'); i >= 0 && j > i {
			names[pid] = string(b[i+1 : j])
		}
	}
	for _, pid := range pids {
		at, ok := parent[pid]
		if !ok || pid == pids[0] {
			continue
		}
		if _, inside := parent[at]; inside || isShepherd(pid) {
			continue // of one that is looked at itself
		}
		found = append(found, criu.Problem{Pid: pid, Name: names[pid], What: "was started from outside and has its parent there: run(), shell() or msh exec",
			Mend: "wait for its end"})
	}
	return found
}
