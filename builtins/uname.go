package builtins

import (
	"fmt"
	"strconv"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

var unameWord = &interp.Word{
	Name: "uname",
	Doc:  `Gives a machine another answer from uname(2). A UTS namespace of its own holds nodename and domainname. For the other fields msh answers in the kernel's place: while the script runs it does so itself, for a machine that is kept a small process of the machine's own. Should that end before the machine does, uname fails in the machine with ENOSYS; nothing hangs, and whoever comes in after that has another. /proc/version and the files of /proc/sys/kernel tell the same as uname.`,
	Params: []interp.Param{
		{Name: "nodename", Type: "string", Default: "None", Doc: "the host name, at most 64 bytes, as every field"},
		{Name: "domainname", Type: "string", Default: "None", Doc: "the NIS domain name"},
		{Name: "sysname", Type: "string", Default: "None", Doc: "the kernel's name; what is left out is the real one's"},
		{Name: "release", Type: "string", Default: "None", Doc: `the kernel's release, as "5.10.0-28-amd64"`},
		{Name: "version", Type: "string", Default: "None", Doc: `its version, as "#1 SMP Debian 5.10.209-2"`},
		{Name: "machine", Type: "string", Default: "None", Doc: `the hardware's name, as "x86_64"`},
	},
	Returns: "a resource of kind uname, mode new",
	Errors:  "a field that is too long, or has spaces (which only version may); nothing given; set() of a field that msh would answer for in a machine that was made without any",
	Example: `m = machine_rfork(resources=[uname(nodename="router1", sysname="Plan9", release="4.0")])
print(m.run(["uname", "-snr"]).stdout.strip())
print(m.run(["cat", "/proc/sys/kernel/osrelease"]).stdout.strip())`,
	Output: "Plan9 router1 4.0\n4.0\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var nodename, domainname, sysname, release, version, machine Text
		if err := c.Unpack(&nodename, &domainname, &sysname, &release, &version, &machine); err != nil {
			return nil, err
		}
		return newResource(c, &kernel.Uname{Nodename: string(nodename), Domainname: string(domainname),
			Sysname: string(sysname), Release: string(release), Version: string(version), Machine: string(machine)})
	},
}

var sysctlWord = &interp.Word{
	Name: "sysctl",
	Doc:  "Sets a kernel parameter that a space of the machine's has for itself. The parameters of the whole host are refused.",
	Params: []interp.Param{
		{Name: "key", Type: "string", Required: true, Pos: true, Doc: `as in sysctl(8): "net.ipv4.ip_forward"; with slashes where a part has a dot`},
		{Name: "value", Type: "string or int", Required: true, Pos: true, Doc: "what to write"},
	},
	Returns: "a resource of kind sysctl, mode new",
	Errors:  "a parameter that no namespace has for itself; one whose space the machine shares with its parent",
	Example: `m = machine_rfork(resources=[netspace(), sysctl("net.ipv4.ip_forward", 1)])
print(m.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout.strip())`,
	Output: "1\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var key Text
		var value starlark.Value
		if err := c.Unpack(&key, &value); err != nil {
			return nil, err
		}
		text, ok := starlark.AsString(value)
		if !ok {
			n, isInt := value.(starlark.Int)
			if !isInt {
				return nil, fmt.Errorf("sysctl: value: got %s, want a string or an int", value.Type())
			}
			text = n.String()
		}
		return newResource(c, &kernel.Sysctl{Name: string(key), Value: text})
	},
}

var rlimitWord = &interp.Word{
	Name: "rlimit",
	Doc:  "Sets one of the limits of setrlimit(2) for every process of a machine.",
	Params: []interp.Param{
		{Name: "name", Type: "string", Required: true, Pos: true, Doc: `"nofile", "core", "stack", … as in limits.conf(5)`},
		{Name: "soft", Type: `int or "unlimited"`, Required: true, Pos: true, Doc: "the limit in force; bytes for sizes, seconds for times"},
		{Name: "hard", Type: `int or "unlimited"`, Default: "None", Pos: true, Doc: "how far a process may raise it; soft when left out"},
	},
	Returns: "a resource of kind rlimit, mode shared",
	Errors:  "a name that is not a limit; soft above hard; a hard limit above the caller's without CAP_SYS_RESOURCE",
	Example: `m = machine_rfork(resources=[rlimit("nofile", 100, 200)])
print(m.run("ulimit -Sn; ulimit -Hn").stdout.split())`,
	Output: "[\"100\", \"200\"]\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var name Text
		var soft limit
		hard := limit{none: true}
		if err := c.Unpack(&name, &soft, &hard); err != nil {
			return nil, err
		}
		if hard.none {
			hard = soft
		}
		return newResource(c, &kernel.Rlimit{Name: string(name), Soft: soft.n, Hard: hard.n})
	},
}

// limit is a number, or "unlimited".
type limit struct {
	n    uint64
	none bool
}

// Unpack implements starlark.Unpacker.
func (l *limit) Unpack(v starlark.Value) error {
	l.none = false
	if v == starlark.String("unlimited") {
		l.n = kernel.Unlimited
		return nil
	}
	if i, ok := v.(starlark.Int); ok {
		if n, ok := i.Uint64(); ok && n != kernel.Unlimited {
			l.n = n
			return nil
		}
		return fmt.Errorf(`got %s, want 0 to %s, or "unlimited"`, i, strconv.FormatUint(kernel.Unlimited-1, 10))
	}
	if s, ok := v.(starlark.String); ok {
		return fmt.Errorf(`got %s, want a number or "unlimited"`, s)
	}
	return fmt.Errorf(`got %s, want a number or "unlimited"`, v.Type())
}
