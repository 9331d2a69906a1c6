package builtins

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"go.starlark.net/starlark"

	"msh/kernel"
	"msh/kernel/cgroup"
)

// Size is the value of a parameter in bytes: an int, or "64K", "256M", "1.5G".
type Size int64

// Unpack implements starlark.Unpacker.
func (s *Size) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.Int:
		n, ok := v.Int64()
		if !ok || n < 0 {
			return fmt.Errorf("got %s, want a size in bytes from 0 to %d", kernel.Short(v.String()), int64(math.MaxInt64))
		}
		*s = Size(n)
		return nil
	case starlark.String:
		n, err := parseSize(string(v))
		if err != nil {
			return err
		}
		*s = Size(n)
		return nil
	}
	return fmt.Errorf(`got %s, want a size: bytes as an int, or "64K", "256M", "2G"`, v.Type())
}

func parseSize(text string) (int64, error) {
	bad := fmt.Errorf(`got %q, want a size: bytes as an int, or "64K", "256M", "2G" (powers of 1024)`, kernel.Short(text))
	number, shift := text, 0
	if n := len(text); n > 0 {
		if i := strings.IndexByte("KMGT", text[n-1]); i >= 0 {
			number, shift = text[:n-1], 10*(i+1)
		}
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || !(f >= 0) || strings.ContainsAny(number, "xXpP_eE+") {
		return 0, bad
	}
	f = math.Ldexp(f, shift)
	if f >= math.MaxInt64 || f != math.Trunc(f) {
		return 0, bad
	}
	return int64(f), nil
}

// CPUs is the value of a parameter that names CPUs: "0-1,3" or [0, 1, 3].
type CPUs []int

// Unpack implements starlark.Unpacker.
func (c *CPUs) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.String:
		cpus, err := cgroup.ParseCPUs(string(v))
		if err != nil {
			return err
		}
		*c = cpus
		return nil
	case starlark.Iterable:
		cpus := CPUs{}
		for e := range starlark.Elements(v) {
			n, err := starlark.AsInt32(e)
			if err != nil || n < 0 {
				return fmt.Errorf(`got %s among the CPUs, want numbers from 0, as "0-1,3" or [0, 1, 3]`, e)
			}
			cpus = append(cpus, n)
		}
		*c = cpus
		return nil
	}
	return fmt.Errorf(`got %s, want CPUs as "0-1,3" or [0, 1, 3]`, v.Type())
}

// Percent is the value of a parameter in percent: a number, 50 for 50 %.
type Percent float64

// Unpack implements starlark.Unpacker.
func (p *Percent) Unpack(v starlark.Value) error {
	f, ok := starlark.AsFloat(v)
	if !ok {
		return fmt.Errorf("got %s, want a number of percent: 50 is 50 %%", v)
	}
	*p = Percent(f)
	return nil
}

// Text is the value of a parameter that is a text that is not empty.
type Text string

// Unpack implements starlark.Unpacker.
func (t *Text) Unpack(v starlark.Value) error {
	s, ok := v.(starlark.String)
	if !ok {
		return fmt.Errorf("got %s, want a string", v.Type())
	}
	if s == "" || strings.IndexByte(string(s), 0) >= 0 {
		return fmt.Errorf("got %q, want a text that is not empty and has no NUL", kernel.Short(string(s)))
	}
	*t = Text(s)
	return nil
}

// Texts is a list of strings.
type Texts []string

// Unpack implements starlark.Unpacker.
func (t *Texts) Unpack(v starlark.Value) error {
	it, ok := v.(starlark.Iterable)
	if !ok {
		return fmt.Errorf("got %s, want a list of strings", v.Type())
	}
	list := Texts{}
	for e := range starlark.Elements(it) {
		s, ok := starlark.AsString(e)
		if !ok {
			return fmt.Errorf("got %s in the list, want strings", e.Type())
		}
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("got %q in the list, want strings without NUL", kernel.Short(s))
		}
		list = append(list, s)
	}
	*t = list
	return nil
}

// Argv is a program and its arguments, or as a string a command for /bin/sh.
type Argv []string

// Unpack implements starlark.Unpacker.
func (a *Argv) Unpack(v starlark.Value) error {
	if s, ok := v.(starlark.String); ok {
		if s == "" {
			return fmt.Errorf("got an empty command, want a list of a program and its arguments, or a command for /bin/sh")
		}
		if strings.IndexByte(string(s), 0) >= 0 {
			return fmt.Errorf("got %q, want a command without NUL", kernel.Short(string(s)))
		}
		*a = Argv{"/bin/sh", "-c", string(s)}
		return nil
	}
	var t Texts
	if err := t.Unpack(v); err != nil {
		return fmt.Errorf("%w: a program and its arguments, or one string for /bin/sh", err)
	}
	if len(t) == 0 || t[0] == "" {
		return fmt.Errorf("got no program, want a list of a program and its arguments, or a command for /bin/sh")
	}
	*a = Argv(t)
	return nil
}

// Env is a dict of variables.
type Env map[string]string

// Unpack implements starlark.Unpacker.
func (e *Env) Unpack(v starlark.Value) error {
	d, ok := v.(*starlark.Dict)
	if !ok {
		return fmt.Errorf("got %s, want a dict of strings", v.Type())
	}
	env := Env{}
	for k, v := range starlark.Entries(d) {
		name, ok1 := starlark.AsString(k)
		value, ok2 := starlark.AsString(v)
		if !ok1 || !ok2 {
			return fmt.Errorf("got %s: %s, want strings", kernel.Short(k.String()), kernel.Short(v.String()))
		}
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.IndexByte(value, 0) >= 0 {
			return fmt.Errorf("got %q: %q, want a name without =, and no NUL in either", kernel.Short(name), kernel.Short(value))
		}
		env[name] = value
	}
	*e = env
	return nil
}

// Data is a string or bytes.
type Data []byte

// Unpack implements starlark.Unpacker.
func (d *Data) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.String:
		*d = Data(v)
	case starlark.Bytes:
		*d = Data(v)
	default:
		return fmt.Errorf("got %s, want a string or bytes", v.Type())
	}
	return nil
}

// Whole is a whole number.
type Whole int64

// Unpack implements starlark.Unpacker.
func (w *Whole) Unpack(v starlark.Value) error {
	i, ok := v.(starlark.Int)
	if !ok {
		return fmt.Errorf("got %s, want a whole number", v.Type())
	}
	n, ok := i.Int64()
	if !ok {
		return fmt.Errorf("got %s, want a number of at most 63 bits", kernel.Short(i.String()))
	}
	*w = Whole(n)
	return nil
}
