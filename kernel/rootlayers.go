package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// rootLayers is how an overlay over a directory that has mounts below it is made in
// the space of a user. There those mounts are locked, and the kernel lets no tree be
// looked under them (mount_namespaces(7); has_locked_children in fs/namespace.c): so
// the directories without any become overlays one by one, below a root of the
// machine's own. As everywhere, mounts of the parent's are not in a machine's root.
//
// What is the host's root's is nobody's here, and closed to writing. The directory
// that is an upper layer is the machine's root's all the same: so each overlay's upper
// layer has, besides its top, those directories that programs expect to write in.
type rootLayers struct {
	Dirs  []ownDir    `json:",omitempty"` // that are only there
	Links [][2]string `json:",omitempty"` // name and text
	Over  []rootLayer `json:",omitempty"`
	Files []string    `json:",omitempty"` // to be read, not written
}

// rootLayer is one overlay; Own are the directories in it that are made the
// machine's root's.
type rootLayer struct {
	Dir  string
	Mode uint32
	Own  []ownDir `json:",omitempty"`
}

type ownDir struct {
	Path string
	Mode uint32
}

// layered sees whether the roots of a spec need layers, and lays them out in a copy.
func (h *Host) layered(parent *Machine, s *Spec) error {
	for i, r := range s.Resources {
		root, ok := r.(*Root)
		if !ok || root.Layers != nil {
			continue
		}
		layers, err := h.layersOf(parent, root.Source)
		if err != nil || layers == nil {
			return err
		}
		c := *root
		c.Layers = layers
		s.Resources = slices.Clone(s.Resources)
		s.Resources[i] = &c
	}
	return nil
}

// layersOf returns nil where one overlay will do.
func (h *Host) layersOf(parent *Machine, source string) (*rootLayers, error) {
	for m := parent; !m.isHost(); m = m.parent {
		if r, ok := m.Spec().find("root").(*Root); ok {
			if clean(source) == "/" {
				return r.Layers, nil // the parent's root is made so
			}
			return nil, nil
		}
	}
	abs, err := filepath.Abs(source)
	if err != nil {
		return nil, err
	}
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, nil // who opens it says so
	}
	return hostLayers(abs, h.State)
}

// hostLayers are looked at once for each directory: a lab has many machines.
// The pins of networks are mounts in the state directory, and come later.
func hostLayers(dir, state string) (*rootLayers, error) {
	layersMu.Lock()
	defer layersMu.Unlock()
	if l, ok := layersSeen[dir]; ok {
		return l, nil
	}
	mounts, err := mountPoints()
	if err != nil {
		return nil, err
	}
	mounts = append(mounts, state)
	var l *rootLayers
	if mountBelow(mounts, dir) {
		l = &rootLayers{}
		if err := l.add(mounts, dir, ""); err != nil {
			return nil, err
		}
	}
	layersSeen[dir] = l
	return l, nil
}

var (
	layersMu   sync.Mutex
	layersSeen = map[string]*rootLayers{}
)

// mountPoints lists those of msh's own mount table.
func mountPoints() ([]string, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			all = append(all, unescapeMount(f[4]))
		}
	}
	return all, nil
}

// unescapeMount undoes the octal escapes of proc_pid_mountinfo(5).
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

func mountBelow(mounts []string, dir string) bool {
	prefix := strings.TrimSuffix(dir, "/") + "/"
	return slices.ContainsFunc(mounts, func(m string) bool { return strings.HasPrefix(m, prefix) && m != prefix })
}

const (
	mostLayers = 400 // overlays for one root
	mostOwn    = 400 // directories in one
)

// add lays out a directory that has mounts below it; at is its path from the root.
func (l *rootLayers) add(mounts []string, top, at string) error {
	dir := filepath.Join(top, at)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // not the user's to list, and so not the machine's
	}
	for _, e := range entries {
		name := filepath.Join(at, e.Name())
		path := filepath.Join(top, name)
		switch {
		case e.Type()&os.ModeSymlink != 0:
			if text, err := os.Readlink(path); err == nil {
				l.Links = append(l.Links, [2]string{name, text})
			}
		case slices.Contains(mounts, path) && e.IsDir():
			l.Dirs = append(l.Dirs, ownDir{name, modeOf(path)}) // what is mounted there is the parent's alone
		case slices.Contains(mounts, path):
		case e.IsDir() && mountBelow(mounts, path):
			l.Dirs = append(l.Dirs, ownDir{name, modeOf(path)})
			if err := l.add(mounts, top, name); err != nil {
				return err
			}
		case e.IsDir() && (strings.ContainsAny(name, `,:\`) || !listable(path)):
			l.Dirs = append(l.Dirs, ownDir{name, modeOf(path)}) // no name for a layer, or closed to the user
		case e.IsDir():
			l.Over = append(l.Over, rootLayer{name, modeOf(path), ownDirs(top, name)})
		case e.Type().IsRegular():
			l.Files = append(l.Files, name)
		}
	}
	if n := len(l.Over) + len(l.Files); n > mostLayers {
		return &ParamError{Kind: "root", Param: "source", Got: fmt.Sprintf("%q, with mounts in it around which %d overlays would be needed", top, n), Want: fmt.Sprintf("at most %d", mostLayers), Mend: "give a directory without mounts in it"}
	}
	return nil
}

// ownDirs lists the directories in a layer that programs expect to write in.
func ownDirs(top, at string) []ownDir {
	first, _, _ := strings.Cut(at, "/")
	if !slices.Contains([]string{"etc", "var", "opt", "srv", "root", "home", "mnt"}, first) {
		return nil
	}
	var own []ownDir
	base := filepath.Join(top, at)
	for queue := []string{""}; len(queue) > 0 && len(own) < mostOwn; queue = queue[1:] {
		entries, _ := os.ReadDir(filepath.Join(base, queue[0]))
		for _, e := range entries {
			d := filepath.Join(queue[0], e.Name())
			if !e.IsDir() || len(own) >= mostOwn || !listable(filepath.Join(base, d)) {
				continue
			}
			own = append(own, ownDir{d, modeOf(filepath.Join(base, d))})
			if strings.Count(d, "/") < 2 {
				queue = append(queue, d)
			}
		}
	}
	return own
}

func listable(dir string) bool { return unix.Access(dir, unix.R_OK|unix.X_OK) == nil }

// modeOf is who may do what in a directory, without set-group-ID: the group is another.
func modeOf(dir string) uint32 {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0o755
	}
	return st.Mode & 0o1777
}

// layers mounts the overlays. The working directory is the machine's scratch tmpfs,
// "/" still the parent's root.
func (r *Root) layers(s *Steps) {
	mkdir := func(path string, mode uint32) {
		s.Call("make "+path, stage0.MayFail, unix.SYS_MKDIRAT, stage0.AtCwd, path, int(mode))
	}
	top := clean(r.Source)
	where := r.changes(s)
	mkdir("root", 0o755)
	root := s.Call("make a mount of root", 0, unix.SYS_OPEN_TREE, stage0.AtCwd, "root", openTreeFlags(false))
	s.moveMount("put it there", root, "root")
	for _, d := range r.Layers.Dirs {
		mkdir("root/"+d.Path, d.Mode)
	}
	for _, l := range r.Layers.Links {
		s.Call("link "+l[0]+" to "+l[1], stage0.MayFail, unix.SYS_SYMLINKAT, l[1], stage0.AtCwd, "root/"+l[0])
	}
	for _, l := range r.Layers.Over {
		name := strings.ReplaceAll(l.Dir, "/", "%")
		upper, work := where+"upper/"+name, where+"work/"+name
		mkdir(upper, l.Mode)
		mkdir(work, 0o755)
		for _, d := range l.Own {
			mkdir(upper+"/"+d.Path, d.Mode)
		}
		mkdir("root/"+l.Dir, 0o755)
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,userxattr", filepath.Join(top, l.Dir), upper, work)
		flags := stage0.Flags(0)
		if strings.Contains(l.Dir, "/") {
			flags = stage0.MayFail // it may have been removed since
		}
		s.Call("mount overlay on "+l.Dir, flags, unix.SYS_MOUNT, "msh", "root/"+l.Dir, "overlay", 0, options)
	}
	for _, f := range r.Layers.Files {
		fd := s.Call("open "+f, stage0.SkipNext, unix.SYS_OPEN_TREE, stage0.AtCwd, filepath.Join(top, f), openTreeFlags(false))
		s.Call("make the file "+f, stage0.MayFail, unix.SYS_MKNODAT, stage0.AtCwd, "root/"+f, unix.S_IFREG|0o444, 0)
		s.Call("mount it", stage0.MayFail, unix.SYS_MOVE_MOUNT, fd, "", stage0.AtCwd, "root/"+f, moveFromHandle)
		s.Call("make it read-only", stage0.MayFail, unix.SYS_MOUNT_SETATTR, fd, "", atEmptyPath, mountAttr(unix.MOUNT_ATTR_RDONLY, 0, 0), mountAttrSize)
	}
	// The old name of the directory is what lies below the mount.
	s.Call("go there", 0, unix.SYS_FCHDIR, root)
}
