package builtins

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.starlark.net/starlark"

	"msh/interp"
	"msh/kernel"
)

// Process is a program that a machine runs on its own, as a Starlark value.
type Process struct {
	p *kernel.Process
	v *Machine
}

var _ starlark.HasAttrs = (*Process)(nil)

var spawnWord = method(&interp.Word{
	Name: "spawn",
	Doc: "Starts a program in the machine and goes on. It returns once the program has been executed; what it writes goes to a log. " +
		"It ends with the machine; one of host's ends with the script, but should msh be killed, nobody ends that.",
	Params: commandParams(
		interp.Param{Name: "log", Type: "string", Default: "None", Doc: "a file of the host's to append to; one of msh's, gone with the machine, when left out, which for a program of host's it may not be"},
		interp.Param{Name: "restart", Type: "string", Default: `"no"`, Doc: `when it is started again: "no", "on-failure" (a code other than 0) or "always"; pauses grow from 100 ms to 10 s`},
	),
	Returns: "a Process: pid, alive, code (None while it runs), wait(), kill(), log()",
	Errors:  "a program that is not there or cannot be executed; one of host's without a log",
	Example: `m = machine_rfork()
p = m.spawn("echo ready; sleep 60")
expect.eventually(lambda: "ready" in p.log())
p.kill()
print(p.wait(), p.alive)`,
	Output: "143 False\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var k command
	var log Text
	restart := "no"
	if err := c.Unpack(k.dst(&log, &restart)...); err != nil {
		return nil, err
	}
	// In a dry run too.
	if err := errors.Join(k.kernel().Validate(), kernel.Restart(restart).Validate()); err != nil {
		return nil, err
	}
	if v == v.s.host && log == "" {
		return nil, interp.WithHint(errors.New("spawn: log: got None, want a file for what a process of the host writes"), `log="/tmp/NAME.log"`)
	}
	if v.planned() {
		return v.would("spawn %s", k.text())
	}
	p, err := v.m.Spawn(c.Context(), k.kernel(), string(log), kernel.Restart(restart))
	if err != nil {
		return nil, err
	}
	return &Process{p, v}, nil
})

func (p *Process) String() string {
	return fmt.Sprintf("<process %s in %s>", strings.Join(p.p.Argv(), " "), p.v.m.Name())
}

// Type implements starlark.Value.
func (p *Process) Type() string { return "process" }

// Freeze implements starlark.Value.
func (p *Process) Freeze() {}

// Truth implements starlark.Value.
func (p *Process) Truth() starlark.Bool { return true }

// Hash implements starlark.Value.
func (p *Process) Hash() (uint32, error) { return starlark.String(p.String()).Hash() }

// Attr implements starlark.HasAttrs.
func (p *Process) Attr(name string) (starlark.Value, error) {
	switch name {
	case "pid":
		return starlark.MakeInt(p.p.Pid()), nil
	case "alive":
		return starlark.Bool(p.p.Alive()), nil
	case "code":
		if code, ok := p.p.Code(); ok {
			return starlark.MakeInt(code), nil
		}
		return starlark.None, nil
	}
	if w := p.v.s.method("Process." + name); w != nil {
		return w.Bind(p), nil
	}
	return noAttr(p, name)
}

// AttrNames implements starlark.HasAttrs.
func (p *Process) AttrNames() []string {
	return p.v.s.attrNames("Process")
}

var processWaitWord = &interp.Word{
	Name: "Process.wait",
	Doc:  "Waits for the end of a spawned program, restarts included.",
	Params: []interp.Param{
		{Name: "timeout", Type: "duration", Default: "None", Pos: true, Doc: "how long at most; for ever when left out"},
	},
	Returns: "its code: 128 and the signal's number where a signal ended it",
	Errors:  "the time is up; it runs on",
	Example: `p = machine_rfork().spawn("exit 7")
print(p.wait(timeout="5s"), p.code)`,
	Output: "7 7\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		var timeout *interp.Duration
		if err := c.Unpack(durationPtr(&timeout)); err != nil {
			return nil, err
		}
		var limit time.Duration
		if timeout != nil {
			limit = time.Duration(*timeout)
		}
		code, err := c.Recv.(*Process).p.Wait(c.Context(), limit)
		if err != nil {
			return nil, err
		}
		return starlark.MakeInt(code), nil
	},
}

var processKillWord = &interp.Word{
	Name: "Process.kill",
	Doc:  "Sends a spawned program a signal. After one that ends programs it is not restarted.",
	Params: []interp.Param{
		{Name: "signal", Type: "string or int", Default: `"TERM"`, Pos: true, Doc: `"TERM", "HUP", "KILL", …, or its number`},
	},
	Errors: "a signal that Linux does not have",
	Example: `p = machine_rfork().spawn(["sleep", "60"], restart="always")
p.kill("KILL")
print(p.wait())`,
	Output: "137\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		sig := Signal{"TERM"}
		if err := c.Unpack(&sig); err != nil {
			return nil, err
		}
		n, err := kernel.ParseSignal(sig.name)
		if err != nil {
			return nil, err
		}
		return nil, c.Recv.(*Process).p.Kill(n)
	},
}

var processLogWord = &interp.Word{
	Name:    "Process.log",
	Doc:     "Reads what a spawned program has written so far, standard output and error together.",
	Returns: "a string",
	Example: `p = machine_rfork().spawn("echo one; echo two >&2")
p.wait()
print(p.log())`,
	Output: "one\ntwo\n\n",
	Needs:  "root",
	Fn: func(c *interp.Call) (starlark.Value, error) {
		if err := c.Unpack(); err != nil {
			return nil, err
		}
		b, err := c.Recv.(*Process).p.Log()
		return starlark.String(b), err
	},
}

// Signal is a parameter that names a signal.
type Signal struct{ name string }

// Unpack implements starlark.Unpacker.
func (s *Signal) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.String:
		s.name = string(v)
	case starlark.Int:
		s.name = v.String()
	default:
		return fmt.Errorf(`got %s, want a signal as "TERM" or 15`, v.Type())
	}
	_, err := kernel.ParseSignal(s.name)
	if e := (*kernel.ParamError)(nil); errors.As(err, &e) {
		return fmt.Errorf("got %s, want %s", e.Got, e.Want) // whose parameter it is, the caller says
	}
	return err
}
