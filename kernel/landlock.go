package kernel

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"msh/kernel/stage0"
)

// landlockABI is what this kernel knows of landlock(7); 0 for nothing.
var landlockABI = sync.OnceValue(func() int {
	n, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(n)
})

// The first of Landlock's versions that know of moving between directories, of
// truncation, of devices' ioctls, of scopes.
const (
	abiRefer    = 2
	abiTruncate = 3
	abiIoctl    = 5
	abiScope    = 6
)

// The rights of each letter of an access. What is never named is refused wherever
// a rule set is: making device nodes.
const (
	landlockRead  = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	landlockWrite = unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_SYM | unix.LANDLOCK_ACCESS_FS_REFER
	landlockExecute = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE // execve(2) opens it to read
	landlockNodes   = unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK
	// of a rule on a file
	landlockFile = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_TRUNCATE | unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
)

// accessRights reads an access: letters of "rwx", each once.
func accessRights(access string) (uint64, bool) {
	var rights uint64
	for i, c := range access {
		switch c {
		case 'r':
			rights |= landlockRead
		case 'w':
			rights |= landlockWrite
		case 'x':
			rights |= landlockExecute
		default:
			return 0, false
		}
		if strings.ContainsRune(access[:i], c) {
			return 0, false
		}
	}
	return rights, access != ""
}

// fence is a rule set of Landlock's: of the files, only those beneath the paths; of
// processes and abstract sockets, where those are scoped, only those in the fence.
type fence struct {
	Paths   map[string]string // path in the machine → access, as "rw"
	May     []string          `json:",omitempty"` // of them, those that need not be there
	Below   bool              `json:",omitempty"` // that of a machine around, as its trees are mounted here
	Sockets bool              `json:",omitempty"` // scope abstract sockets
	Signals bool              `json:",omitempty"` // scope signals
}

// landlock appends the steps that put the process into a fence, for good. It comes
// before rlimits, as it opens the paths. program is one of msh's own that will be
// executed in the fence, "" for none.
func (s *Steps) landlock(f *fence, program string) {
	handled := uint64(landlockRead | landlockWrite | landlockExecute | landlockNodes)
	abi := landlockABI()
	for _, younger := range []struct {
		abi    int
		rights uint64
	}{{abiRefer, unix.LANDLOCK_ACCESS_FS_REFER}, {abiTruncate, unix.LANDLOCK_ACCESS_FS_TRUNCATE}, {abiIoctl, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV}} {
		if abi < younger.abi {
			handled &^= younger.rights
		}
	}
	attr := binary.NativeEndian.AppendUint64(nil, handled) // struct landlock_ruleset_attr
	var scoped uint64
	words := "make a fence"
	if f.Sockets {
		scoped |= unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET
		words += ", abstract sockets in it"
	}
	if f.Signals {
		scoped |= unix.LANDLOCK_SCOPE_SIGNAL
		words += ", signals in it"
	}
	if scoped != 0 {
		attr = binary.NativeEndian.AppendUint64(attr, 0) // of the network nothing
		attr = binary.NativeEndian.AppendUint64(attr, scoped)
	}
	rules := s.Call(words, 0, unix.SYS_LANDLOCK_CREATE_RULESET, attr, len(attr), 0)
	paths := f.Paths
	if program != "" {
		paths = maps.Clone(paths)
		paths[program] = "x"
	}
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		access := paths[path]
		rights, _ := accessRights(access)
		rights &= handled
		var flags stage0.Flags
		if slices.Contains(f.May, path) {
			flags = stage0.MayFail
		}
		resolve := uint64(unix.RESOLVE_NO_MAGICLINKS)
		if f.changeable(path) {
			resolve = unix.RESOLVE_NO_SYMLINKS
		}
		// The rights stand where openat2(2) does not look, right before its result:
		// the two are a struct landlock_path_beneath_attr. Links of the kernel's own
		// would lead to what this process has open of msh's.
		in := s.Call("is "+path+" a directory?", stage0.SkipNext, unix.SYS_OPENAT2, stage0.AtCwd, path, howToOpen(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, resolve), howSize, 0, rights)
		s.Call("let what is beneath it in: "+access, 0, unix.SYS_LANDLOCK_ADD_RULE, rules, unix.LANDLOCK_RULE_PATH_BENEATH, stage0.Tail{Step: in, From: 5}, 0)
		if rights &= landlockFile; rights == 0 {
			continue
		}
		at := s.Call("find "+path+", which landlock lets in", flags, unix.SYS_OPENAT2, stage0.AtCwd, path, howToOpen(unix.O_PATH|unix.O_CLOEXEC, resolve), howSize, 0, rights)
		s.Call("let it in: "+access, flags, unix.SYS_LANDLOCK_ADD_RULE, rules, unix.LANDLOCK_RULE_PATH_BENEATH, stage0.Tail{Step: at, From: 5}, 0)
	}
	s.Call("go into the fence", 0, unix.SYS_LANDLOCK_RESTRICT_SELF, rules, 0)
	s.Call("close it", 0, unix.SYS_CLOSE, rules)
}

// changeable tells whether who is in the fence could have put a link where a path of it
// is, by which another place would be let in at the next way in. A machine in a machine
// has its root from there.
func (f *fence) changeable(path string) bool {
	if f.Below {
		return true
	}
	for other, access := range f.Paths {
		if strings.Contains(access, "w") && other != path && beneath(path, other) {
			return true
		}
	}
	return false
}

// beneath tells whether a path is that directory or in it.
func beneath(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// access is what the fence allows at a path: what is said of any directory above.
func (f *fence) access(path string) string {
	var all strings.Builder
	for _, letter := range "rwx" {
		for dir, access := range f.Paths {
			if strings.ContainsRune(access, letter) && beneath(path, dir) {
				all.WriteRune(letter)
				break
			}
		}
	}
	return all.String()
}

// refence puts the fences of the machines around in terms of the machine's own root: by
// where in the parent's the trees are that are mounted in it. A tree must not be let in
// by where it is mounted, if it is not where it comes from.
func (p *Plan) refence() error {
	around := p.Under.Confined
	if around == nil || len(around.Fences) == 0 || len(p.Trees) == 0 {
		return nil
	}
	c := &Confinement{Level: p.Confined.Level, Caps: p.Confined.Caps, NoNewPrivs: p.Confined.NoNewPrivs, Profiles: p.Confined.Profiles}
	for _, f := range around.Fences {
		own, err := p.graft(f)
		if err != nil {
			return err
		}
		c.Fences = append(c.Fences, own)
	}
	c.Fences = append(c.Fences, p.Confined.Fences[len(around.Fences):]...)
	for _, t := range p.Trees {
		t.Plain = true
	}
	p.Confined = c
	return nil
}

func (p *Plan) graft(f *fence) (*fence, error) {
	own := &fence{Paths: map[string]string{}, Below: true, Sockets: f.Sockets, Signals: f.Signals}
	put := func(kind, param, source, target string) error {
		source = clean(source)
		may, there := f.access(source), own.access(target)
		inside := map[string]string{}
		for path, access := range f.Paths {
			if beneath(path, source) {
				inside[clean(target+"/"+strings.TrimPrefix(path, source))] = access
			}
		}
		if may != "" {
			inside[target] = may
		}
		if len(inside) == 0 || strings.Trim(there, may) != "" {
			want := "something that " + p.Under.Name + "'s fence lets in"
			if there != "" {
				want = fmt.Sprintf("at %s, which is let in with %q, what %s's fence lets in with as much", target, there, p.Under.Name)
			}
			return &ParamError{Kind: kind, Param: param, Got: fmt.Sprintf("%q, which it allows %q of", source, may), Want: want, Mend: "name it in the landlock of " + p.Under.Name}
		}
		maps.DeleteFunc(own.Paths, func(path, _ string) bool { return beneath(path, target) }) // covered
		maps.Copy(own.Paths, inside)
		return nil
	}
	root, upper := "/", ""
	if r, ok := p.Spec.find("root").(*Root); ok {
		root, upper = r.Source, r.Upper
	}
	if err := put("root", "source", root, "/"); err != nil {
		return nil, err
	}
	if upper != "" && !strings.Contains(f.access(clean(upper)), "w") {
		return nil, bad("root", "upper", upper, "a directory that "+p.Under.Name+"'s fence lets be written to")
	}
	err := p.each(func(r Resource) error {
		switch r := r.(type) {
		case *Mount:
			if r.Type == "bind" {
				return put("mount", "source", r.Source, clean(r.Target))
			}
		case *Device:
			if p.Spec.Has("root") {
				return put("device", "path", r.Path, r.Path)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for path := range own.Paths {
		if path != "/" {
			own.May = append(own.May, path)
		}
	}
	slices.Sort(own.May)
	return own, nil
}

// needLandlock is nil where this kernel can make such a fence.
func needLandlock(param string, scoped bool) error {
	switch abi := landlockABI(); {
	case abi == 0:
		return unsupported("Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= parameter", "security: %s: Landlock", param)
	case scoped && abi < abiScope:
		return unsupported("Linux 6.12; or netspace() and pidspace() beside it, which keep the machine's sockets and signals in", "security: %s: Landlock's scopes (ABI %d, this kernel has %d)", param, abiScope, abi)
	}
	return nil
}

func (f *fence) words() string {
	var parts []string
	for _, path := range slices.Sorted(maps.Keys(f.Paths)) {
		parts = append(parts, fmt.Sprintf("%s %s", path, f.Paths[path]))
	}
	return strings.Join(parts, ", ")
}
