package kernel

import (
	"golang.org/x/sys/unix"
)

// Uname is what a machine answers to uname(2).
type Uname struct {
	Nodename   string `json:",omitempty"`
	Domainname string `json:",omitempty"`
}

// Kind is "uname".
func (*Uname) Kind() string { return "uname" }

// Mode is new.
func (*Uname) Mode() Mode { return New }

// Validate checks that something is given, and its length (__NEW_UTS_LEN).
func (u *Uname) Validate() error {
	if u.Nodename == "" && u.Domainname == "" {
		return bad("uname", "", nil, "want at least one of nodename and domainname")
	}
	for _, f := range []struct{ name, v string }{{"nodename", u.Nodename}, {"domainname", u.Domainname}} {
		if len(f.v) > 64 {
			return bad("uname", f.name, f.v, "at most 64 bytes")
		}
		for _, c := range []byte(f.v) {
			if c <= ' ' || c == 0x7f {
				return bad("uname", f.name, f.v, "no spaces or control characters")
			}
		}
	}
	return nil
}

// Plan asks for a UTS namespace.
func (u *Uname) Plan(p *Plan) error { p.Flags |= unix.CLONE_NEWUTS; return nil }

// Enter sets the names.
func (u *Uname) Enter(s *Steps) error {
	if u.Nodename != "" {
		s.Call("set the host name to "+u.Nodename, 0, unix.SYS_SETHOSTNAME, u.Nodename, len(u.Nodename))
	}
	if u.Domainname != "" {
		s.Call("set the domain name to "+u.Domainname, 0, unix.SYS_SETDOMAINNAME, u.Domainname, len(u.Domainname))
	}
	return nil
}

func (u *Uname) set(m *Machine) error {
	if !m.Spec().Has("uname") {
		return bad("uname", "", nil, "the machine shares its parent's names: make it with uname(…) to change them")
	}
	return m.perform(func(s *Steps) { u.Enter(s) })
}
