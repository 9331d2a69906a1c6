package kernel

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Uname is what a machine answers to uname(2). A UTS namespace holds the first two
// names; for the others msh answers in the kernel's place, see answer.go.
type Uname struct {
	Nodename   string `json:",omitempty"`
	Domainname string `json:",omitempty"`
	Sysname    string `json:",omitempty"`
	Release    string `json:",omitempty"`
	Version    string `json:",omitempty"`
	Machine    string `json:",omitempty"`
}

// Kind is "uname".
func (*Uname) Kind() string { return "uname" }

// Mode is new.
func (*Uname) Mode() Mode { return New }

// fields are the names and what is given of each, in the order of struct utsname.
func (u *Uname) fields() [6]struct {
	name  string
	value *string
} {
	return [6]struct {
		name  string
		value *string
	}{{"sysname", &u.Sysname}, {"nodename", &u.Nodename}, {"release", &u.Release}, {"version", &u.Version}, {"machine", &u.Machine}, {"domainname", &u.Domainname}}
}

// Validate checks that something is given, and its length (__NEW_UTS_LEN).
func (u *Uname) Validate() error {
	given := false
	for _, f := range u.fields() {
		v := *f.value
		given = given || v != ""
		if len(v) > 64 {
			return bad("uname", f.name, v, "at most 64 bytes")
		}
		for _, c := range []byte(v) {
			if c < ' ' || c == 0x7f || c == ' ' && f.name != "version" {
				return bad("uname", f.name, v, "no spaces or control characters")
			}
		}
		if strings.HasPrefix(v, " ") || strings.HasSuffix(v, " ") {
			return bad("uname", f.name, v, "no spaces at its ends")
		}
	}
	if !given {
		return bad("uname", "", nil, "want at least one of nodename, domainname, sysname, release, version and machine")
	}
	return nil
}

// answers tells whether it has what no namespace holds.
func (u *Uname) answers() bool {
	return u != nil && (u.Sysname != "" || u.Release != "" || u.Version != "" || u.Machine != "")
}

// answered is what of it no namespace holds.
func (u *Uname) answered() *Uname {
	if u == nil {
		return &Uname{}
	}
	return &Uname{Sysname: u.Sysname, Release: u.Release, Version: u.Version, Machine: u.Machine}
}

// over is what n has, and where it has nothing what u has.
func (u *Uname) over(n *Uname) *Uname {
	c := *n
	if u != nil {
		had := *u
		for i, f := range c.fields() {
			if *f.value == "" {
				*f.value = *had.fields()[i].value
			}
		}
	}
	return &c
}

// Plan asks for a UTS namespace, and where msh is to answer for a mount table: the
// files of /proc that tell the same are to agree.
func (u *Uname) Plan(p *Plan) error {
	p.Flags |= unix.CLONE_NEWUTS
	if !u.answers() {
		return nil
	}
	if err := haveSeccomp(); err != nil {
		return fmt.Errorf("uname: sysname, release, version, machine: %w", err)
	}
	p.Table = true
	p.Uname = p.Under.Uname.over(u.answered())
	return nil
}

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
	if u.answers() {
		if err := m.setAnswers(u); err != nil {
			return err
		}
	}
	if u.Nodename == "" && u.Domainname == "" {
		return nil
	}
	return m.perform(func(s *Steps) { u.Enter(s) })
}
