package kernel

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/seccomp"
)

// Security is how far all that runs in a machine is confined: a level of the ladder
// in confinement.go, and what refines it.
type Security struct {
	Level      int
	Caps       []string          // nil: the level's; names to keep, or "+name" and "-name"
	Seccomp    json.RawMessage   `json:",omitempty"` // a profile
	Landlock   map[string]string `json:",omitempty"` // path → access, as "rw"
	NoNewPrivs *bool             `json:",omitempty"` // nil: from level 1 on
}

const topLevel = 3

// Kind is "security".
func (*Security) Kind() string { return "security" }

// Mode is shared: the kernel is the parent's, under a policy.
func (*Security) Mode() Mode { return Shared }

// Validate checks what can be told without the parent.
func (s *Security) Validate() error {
	if s.Level < 0 || s.Level > topLevel {
		return bad("security", "level", s.Level, fmt.Sprintf("0 to %d", topLevel))
	}
	if _, err := s.keeps(everyCap, ""); err != nil {
		return err
	}
	if s.Seccomp != nil {
		if err := s.checkProfile(); err != nil {
			return err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(s.Landlock)) {
		if path != clean(path) || strings.ContainsRune(path, 0) {
			return bad("security", "landlock", path, `paths in the machine that begin with / and have no "..", as "/srv/data"`)
		}
		if _, ok := accessRights(s.Landlock[path]); !ok {
			return bad("security", "landlock", s.Landlock[path], `for `+path+` some of the letters "rwx": read, write, execute`)
		}
	}
	if s.Landlock != nil && len(s.Landlock) == 0 {
		return bad("security", "landlock", nil, `want paths and what is allowed beneath them, as {"/": "rx", "/srv": "rw"}`)
	}
	if s.NoNewPrivs != nil && !*s.NoNewPrivs {
		for _, c := range []struct {
			when bool
			what string
		}{{s.Level > 0, fmt.Sprintf("level %d, which is also no new privileges", s.Level)}, {s.Seccomp != nil, "seccomp"}, {s.Landlock != nil, "landlock"}} {
			if c.when {
				return &ParamError{Kind: "security", Param: "no_new_privs", Got: "False beside " + c.what, Want: "True, or left out", Mend: "a program that gains rights as it is executed could be turned against what confines it (PR_SET_NO_NEW_PRIVS(2const))"}
			}
		}
	}
	return nil
}

// ReadProfile reads a seccomp profile from a file of the host's.
func ReadProfile(path string) ([]byte, error) {
	const most = 4 << 20
	st, err := os.Stat(path)
	if err == nil && (!st.Mode().IsRegular() || st.Size() > most) {
		return nil, fmt.Errorf("got %q, want a file of at most %d bytes", Short(path), most)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("got %q, want a file with a seccomp profile in JSON: %w", Short(path), err)
	}
	return b, nil
}

// checkProfile tells whether the profile can be made a filter, and a machine be made
// and ended under it.
func (s *Security) checkProfile() error {
	p, err := seccomp.Parse(s.Seccomp, levels[s.Level].keeps.engineNames())
	var f []byte
	if err == nil {
		f, err = seccomp.Compile(p)
	}
	if err != nil {
		return bad("security", "seccomp", nil, "no profile as container engines and the OCI runtime specification have it: "+err.Error())
	}
	for _, name := range stage0Calls {
		if ret, err := seccomp.Evaluate(f, name); err != nil || !seccomp.Allows(ret) {
			return &ParamError{Kind: "security", Param: "seccomp", Got: "a profile that refuses " + name, Want: "one that allows it: no program could be started in the machine, or ended", Mend: "add " + name + " to the names that it allows"}
		}
	}
	return nil
}

// stage0Calls are the system calls that stage0 makes when the filter is there: to
// execute a program, to be a minimal init, to end.
var stage0Calls = []string{"execve", "execveat", "exit_group", "getpid", "rt_sigtimedwait", "kill", "nanosleep", "ppoll"}

// keeps are the capabilities that are kept of those that the parent has.
func (s *Security) keeps(under capSet, parent string) (capSet, error) {
	level := levels[s.Level]
	kept := level.keeps & under
	if s.Caps == nil {
		return kept, nil
	}
	signed := 0
	var named, gone capSet
	for _, text := range s.Caps {
		name := strings.TrimLeft(text, "+-")
		if len(text)-len(name) > 1 || capNumber(name) < 0 {
			return 0, bad("security", "caps", text, `names of capabilities(7), as "net_raw", or with a sign, as "+net_admin" and "-net_raw"`)
		}
		c := capSet(1) << capNumber(name)
		if text[0] == '-' {
			signed++
			gone |= c
			continue
		}
		if taken := level.takes & c; taken != 0 {
			return 0, &ParamError{Kind: "security", Param: "caps", Got: fmt.Sprintf("%q", text), Want: fmt.Sprintf("none of what level %d takes for good: %s", s.Level, level.takes), Mend: "a lower level, with caps= to drop what need not be kept"}
		}
		if under&c == 0 {
			return 0, bad("security", "caps", text, "at most what "+parent+" has: "+under.String())
		}
		if text[0] == '+' {
			signed++
			kept |= c
		}
		named |= c
	}
	switch {
	case signed == 0:
		return named, nil
	case signed < len(s.Caps):
		return 0, bad("security", "caps", strings.Join(s.Caps, " "), "either names alone, the whole of what is kept, or names that each have a sign")
	}
	if both := named & gone; both != 0 {
		return 0, bad("security", "caps", strings.Join(s.Caps, " "), "each of them kept or given up, not both: "+both.String())
	}
	return kept &^ gone, nil
}

// Plan works out how what runs in the machine is confined.
func (s *Security) Plan(p *Plan) error {
	c, err := s.under(p.Under.Confined, p.Under.Name)
	if err != nil {
		return err
	}
	if err := s.share(c, p.Under.Space|p.Flags); err != nil {
		return err
	}
	own := s.fence(p)
	if own != nil {
		if err := needLandlock(s.fenceParam(), own.Sockets || own.Signals); err != nil {
			return err
		}
		c.Fences = append(c.Fences, own)
	}
	if s.Landlock != nil {
		if err := needLandlock("landlock", false); err != nil {
			return err
		}
		c.Fences = append(c.Fences, &fence{Paths: s.Landlock})
	}
	p.Confined = c
	if c.Level >= levelMasks {
		p.Table = true // what is masked in /proc is so for the machine alone
	}
	return nil
}

// share takes what a machine cannot have in spaces that are its parent's.
//
// Raw sockets in its parent's network, where level 2 keeps them otherwise: with them it
// hears all and sends from any address, and since Linux 5.17 marks its packets for any
// route (SO_MARK), past netaddr and routes.
//
// CAP_SYS_PTRACE with ids that are the host's, where anything is refused it: a process on
// its way in has all that yet, and whoever may trace it has it again. In a user space of
// its own it has not that right over a process that msh has started (Steps.enter).
func (s *Security) share(c *Confinement, space uintptr) error {
	const raw, trace = "net_raw", "sys_ptrace"
	if s.Level >= levelMasks && s.Caps == nil && space&unix.CLONE_NEWNET == 0 {
		c.Caps &^= capsNamed(raw)
	}
	refuses := c.Caps != everyCap || c.NoNewPrivs
	if !refuses || c.Caps&capsNamed(trace) == 0 || space&unix.CLONE_NEWUSER != 0 {
		return nil
	}
	if slices.ContainsFunc(s.Caps, func(text string) bool { return capNumber(strings.TrimPrefix(text, "+")) == capNumber(trace) }) {
		return &ParamError{Kind: "security", Param: "caps", Got: fmt.Sprintf("%q", trace), Want: "none with ids that are the host's: it could trace a process on its way in, which is not confined yet", Mend: "add uidspace() to resources, where it is a right over the machine's own processes"}
	}
	c.Caps &^= capsNamed(trace)
	return nil
}

func (s *Security) fenceParam() string { return fmt.Sprintf("level %d", s.Level) }

// under is the confinement of a machine in one that is confined itself; all but its
// own fences.
func (s *Security) under(u *Confinement, parent string) (*Confinement, error) {
	c := &Confinement{Level: s.Level, Caps: everyCap}
	if u != nil {
		if s.Level < u.Level {
			return nil, &ParamError{Kind: "security", Param: "level", Got: fmt.Sprint(s.Level), Want: fmt.Sprintf("at least %d, which %s has: no machine is confined less than the one that it is in", u.Level, parent)}
		}
		c.Profiles, c.Fences, c.NoNewPrivs = slices.Clone(u.Profiles), slices.Clone(u.Fences), u.NoNewPrivs
		c.Caps = u.Caps
	}
	if s.NoNewPrivs != nil && !*s.NoNewPrivs && c.NoNewPrivs {
		return nil, &ParamError{Kind: "security", Param: "no_new_privs", Got: "False", Want: "True, or left out: " + parent + " has it"}
	}
	kept, err := s.keeps(c.Caps, parent)
	if err != nil {
		return nil, err
	}
	c.Caps = kept
	c.NoNewPrivs = c.NoNewPrivs || s.Level > 0 || s.Seccomp != nil || s.Landlock != nil || s.NoNewPrivs != nil && *s.NoNewPrivs
	if s.Seccomp != nil {
		p, err := seccomp.Parse(s.Seccomp, kept.engineNames())
		if err != nil {
			return nil, bad("security", "seccomp", nil, err.Error())
		}
		c.Profiles = append(c.Profiles, p)
	}
	if _, err := c.filters(); err != nil {
		return nil, err
	}
	return c, nil
}

// fence is the one of level 3: the machine's own root, and what it is given.
func (s *Security) fence(p *Plan) *fence {
	if s.Level < levelFence {
		return nil
	}
	f := &fence{Paths: map[string]string{}}
	space := p.Under.Space | p.Flags
	f.Sockets, f.Signals = space&unix.CLONE_NEWNET == 0, space&unix.CLONE_NEWPID == 0
	if p.Under.Root || p.Spec.Has("root") {
		f.Paths["/"] = "rwx"
		return f
	}
	f.Paths["/"] = "rx"
	for _, n := range deviceNodes {
		f.Paths["/dev/"+n.name] = "rw"
	}
	for _, path := range []string{"/dev/pts", "/dev/ptmx", "/dev/shm"} {
		f.Paths[path] = "rw"
		f.May = append(f.May, path)
	}
	for _, r := range p.Spec.Resources {
		switch r := r.(type) {
		case *Mount:
			if !slices.Contains(r.Options, "ro") {
				f.Paths[clean(r.Target)] = "rwx"
			}
		case *Device:
			f.Paths[r.Path] = r.Access
		}
	}
	return f
}

// set confines further whatever comes into the machine from now on. What runs in it
// cannot be changed from outside, and stays as it is.
func (s *Security) set(m *Machine) error {
	had := m.confinement()
	c, err := s.under(had, m.Name())
	if err != nil {
		return err
	}
	if err := s.share(c, m.space()); err != nil {
		return err
	}
	at := &Plan{Spec: m.Spec(), Under: m.self, Confined: c}
	if had.level() < levelFence {
		if own := s.fence(at); own != nil {
			if err := needLandlock(s.fenceParam(), own.Sockets || own.Signals); err != nil {
				return err
			}
			c.Fences = append(c.Fences, own)
		}
	}
	if s.Landlock != nil {
		if err := needLandlock("landlock", false); err != nil {
			return err
		}
		c.Fences = append(c.Fences, &fence{Paths: s.Landlock})
	}
	if c.Level >= levelMasks && had.level() < levelMasks {
		if !m.Spec().ownsTable() {
			return &ParamError{Kind: "security", Param: "level", Got: fmt.Sprint(s.Level), Want: "a machine with a mount table of its own: what is masked in /proc is so for the machine alone", Mend: "make it with security(level=2), or with mountspace()"}
		}
		if err := m.perform(func(s *Steps) { s.mask(nil) }); err != nil {
			return err
		}
	}
	if at.guardsDevices() && had.level() < levelNodes && !at.Spec.Has("device") { // which guards already
		if err := explainPrograms("security", guard(m.Groups()[0], m.Spec())); err != nil {
			return err
		}
	}
	m.mu.Lock()
	m.self.Confined = c
	m.mu.Unlock()
	return nil
}

// listSecurity says which levels there are here, and what they are made of.
func listSecurity(v *View) ([]Available, error) {
	abi := landlockABI()
	filters := haveSeccomp()
	var list []Available
	for n, words := range []string{
		"what the parent may",
		"no devices, modules, raw I/O, clock, new privileges",
		"capabilities, system calls, /proc and /sys as in containers",
		"pure computing: no new spaces, mounts, tracing; its own files only",
	} {
		a := Available{Name: fmt.Sprintf("level %d", n), Available: true, Detail: words}
		switch least := v.from.confinement().level(); {
		case n < least:
			a.Available, a.Detail = false, fmt.Sprintf("%s is at level %d: no machine in it is confined less", v.from.Name(), least)
		case n > 0 && filters != nil:
			a.Available, a.Detail = false, filters.Error()
		case n >= levelFence && abi == 0:
			a.Available, a.Detail = false, needLandlock("", false).Error()+": Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= parameter"
		}
		list = append(list, a)
	}
	caps, err := ownCaps()
	if err != nil {
		return nil, err
	}
	if c := v.from.confinement(); c != nil {
		caps &= c.Caps
	}
	list = append(list, Available{Name: "caps", Available: true, Detail: caps.String()})
	a := Available{Name: "seccomp", Available: filters == nil, Detail: "a profile as container engines have it"}
	if filters != nil {
		a.Detail = filters.Error()
	}
	list = append(list, a)
	a = Available{Name: "landlock", Available: abi > 0, Detail: fmt.Sprintf("ABI %d", abi)}
	if abi == 0 {
		a.Detail = "the kernel lacks it: Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and landlock in its lsm= parameter"
	} else if abi < abiScope {
		a.Detail += ": no scopes for abstract sockets and signals (Linux 6.12); netspace() and pidspace() keep them in"
	}
	return append(list, a), nil
}

// haveSeccomp is nil where the kernel has filters. It asks for none to be installed.
func haveSeccomp() error {
	// A filter at address 0 is EFAULT where filters are known (seccomp(2)).
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, 0)
	if errno == unix.EFAULT {
		return nil
	}
	return unsupported("CONFIG_SECCOMP_FILTER", "seccomp filters (%v)", errno)
}
