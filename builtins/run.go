package builtins

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"msh/interp"
	"msh/kernel"
)

// commandParams are those that every way of starting a program takes.
func commandParams(more ...interp.Param) []interp.Param {
	return append([]interp.Param{
		{Name: "argv", Type: "list or string", Required: true, Pos: true, Doc: "a program and its arguments; a string is run by /bin/sh -c"},
		{Name: "env", Type: "dict", Default: "None", Doc: "variables beside PATH, HOME, USER and LOGNAME, or instead of them"},
		{Name: "cwd", Type: "string", Default: "None", Doc: "the working directory in the machine; / when left out"},
		{Name: "user", Type: "string", Default: "None", Doc: "USER or USER:GROUP, names of the machine's own passwd and group files, or numbers; root when left out"},
	}, more...)
}

// command is what those parameters are read into.
type command struct {
	argv      Argv
	env       Env
	cwd, user Text
}

func (k *command) dst(more ...any) []any {
	return append([]any{&k.argv, &k.env, &k.cwd, &k.user}, more...)
}

func (k *command) kernel() *kernel.Command {
	return &kernel.Command{Argv: k.argv, Env: k.env, Cwd: string(k.cwd), User: string(k.user)}
}

// text is the command for errors and plans.
func (k *command) text() string {
	if len(k.argv) == 3 && k.argv[0] == "/bin/sh" && k.argv[1] == "-c" {
		return k.argv[2]
	}
	return strings.Join(k.argv, " ")
}

var runWord = method(&interp.Word{
	Name: "run",
	Doc: "Runs a program in the machine to its end. " +
		"Nothing of the caller's leaks in: not its environment, its descriptors, its working directory, its umask. A background process that keeps the output open is not waited for.",
	Params: commandParams(
		interp.Param{Name: "stdin", Type: "string or bytes", Default: "None", Doc: "what it reads; nothing when left out"},
		interp.Param{Name: "timeout", Type: "duration", Default: "None", Doc: "after it, the program and its process group are killed, which is an error"},
		interp.Param{Name: "check", Type: "bool", Default: "True", Doc: "whether a code other than 0 is an error"},
	),
	Returns: "struct(code, ok, stdout, stderr, seconds); a program that a signal ended has code 128 and the signal's number",
	Errors:  "a program that is not there or cannot be executed; with check, a code other than 0, with the end of stderr",
	Example: `m = machine_rfork()
r = m.run(["sh", "-c", "echo out; echo err >&2; exit 3"], check=False)
print(r.code, r.ok, r.stdout.strip(), r.stderr.strip())
print(m.run("tr a-z A-Z", stdin="loud").stdout)`,
	Output: "3 False out err\nLOUD\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var k command
	var stdin Data
	var timeout *interp.Duration
	check := true
	if err := c.Unpack(k.dst(&stdin, durationPtr(&timeout), &check)...); err != nil {
		return nil, err
	}
	if err := k.kernel().Validate(); err != nil {
		return nil, err // in a dry run too
	}
	if v.planned() {
		return v.would("run %s", k.text())
	}
	var limit time.Duration
	if timeout != nil {
		limit = time.Duration(*timeout)
	}
	r, err := v.m.Run(c.Context(), k.kernel(), stdin, limit)
	if err != nil {
		return nil, err
	}
	if check && r.Code != 0 {
		return nil, failed(v, &k, r)
	}
	return starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
		"code":    starlark.MakeInt(r.Code),
		"ok":      starlark.Bool(r.Code == 0),
		"stdout":  starlark.String(r.Stdout),
		"stderr":  starlark.String(r.Stderr),
		"seconds": starlark.Float(r.Duration.Seconds()),
	}), nil
})

// failed is the error of a program that ended with a code other than 0.
func failed(v *Machine, k *command, r *kernel.Result) error {
	text := fmt.Sprintf("run %s in %s: code %d", kernel.Short(k.text()), v.m.Name(), r.Code)
	if r.Code > 128 {
		if name := kernel.SignalName(r.Code - 128); name != "" {
			text += " (" + name + ")"
		}
	}
	out := r.Stderr
	if len(strings.TrimSpace(string(out))) == 0 {
		out = r.Stdout
	}
	if s := strings.TrimSpace(string(out)); s != "" {
		lines := strings.Split(s, "\n")
		if len(lines) > 10 {
			lines = append([]string{"…"}, lines[len(lines)-10:]...)
		}
		text += ":\n  " + strings.Join(lines, "\n  ")
	}
	return interp.WithHint(errors.New(text), "with check=False the code is returned instead")
}

// optionalDuration unpacks a duration that may be absent; one of 0 would be no time at all.
type optionalDuration struct{ p **interp.Duration }

func durationPtr(p **interp.Duration) *optionalDuration { return &optionalDuration{p} }

// Unpack implements starlark.Unpacker.
func (o *optionalDuration) Unpack(v starlark.Value) error {
	var d interp.Duration
	if err := d.Unpack(v); err != nil {
		return err
	}
	if d == 0 {
		return fmt.Errorf("got %s, want a duration above 0", v)
	}
	*o.p = &d
	return nil
}

var shellWord = method(&interp.Word{
	Name: "shell",
	Doc: "Gives the caller an interactive terminal in the machine, on a pseudo-terminal of the machine's own. " +
		"It ends with the program.",
	Params: []interp.Param{
		{Name: "argv", Type: "list or string", Default: "None", Pos: true, Doc: "the program; /bin/sh when left out"},
	},
	Returns: "the program's code",
	Errors:  "a program that is not there; a machine without a devpts",
	Example: `m = machine_rfork(resources=[root("/")])
print(m.shell("test -t 0 && tty"))`,
	Output: "/dev/pts/0\r\n0\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	argv := Argv{"/bin/sh"}
	if err := c.Unpack(&argv); err != nil {
		return nil, err
	}
	if v.planned() {
		return v.would("shell %s", strings.Join(argv, " "))
	}
	code, err := v.m.Interact(c.Context(), &kernel.Command{Argv: argv}, c.Interp().Stdin(), c.Interp().Stdout())
	if err != nil {
		return nil, err
	}
	return starlark.MakeInt(code), nil
})
