package builtins

import (
	"fmt"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"msh/interp"
	"msh/kernel"
)

// control makes a method that is about a machine as a whole, and not for the host.
func control(w *interp.Word, fn func(c *interp.Call, v *Machine) (starlark.Value, error)) *interp.Word {
	name := w.Name
	return method(w, func(c *interp.Call, v *Machine) (starlark.Value, error) {
		if v == v.s.host {
			return nil, kernel.NotHost(name)
		}
		return fn(c, v)
	})
}

// simple makes one without parameters.
func simple(w *interp.Word, do func(c *interp.Call, m *kernel.Machine) error) *interp.Word {
	name := w.Name
	return control(w, func(c *interp.Call, v *Machine) (starlark.Value, error) {
		if err := c.Unpack(); err != nil {
			return nil, err
		}
		if v.planned() {
			v.would("%s", name)
			if name == "destroy" {
				v.s.lab.PlanEnd(v.m, true)
			}
			return nil, nil
		}
		return nil, do(c, v.m)
	})
}

var freezeWord = simple(&interp.Word{
	Name: "freeze",
	Doc:  "Stops every process of the machine, and of the machines inside it, where it stands. It returns when they have stopped.",
	Example: `m = machine_rfork()
m.freeze()
print(m.state)
m.thaw()
print(m.state)`,
	Output: "frozen\nrunning\n",
}, func(c *interp.Call, m *kernel.Machine) error { return m.Freeze(c.Context()) })

var thawWord = simple(&interp.Word{
	Name: "thaw",
	Doc:  "Lets the processes of a frozen machine go on.",
	Example: `m = machine_rfork()
m.freeze()
m.thaw()
print(m.run(["echo", "on we go"]).stdout)`,
	Output: "on we go\n\n",
}, func(c *interp.Call, m *kernel.Machine) error { return m.Thaw(c.Context()) })

var destroyWord = simple(&interp.Word{
	Name: "destroy",
	Doc:  "Ends the machine and those inside it, and takes back all that it was given. Destroying it twice is no error.",
	Example: `m = machine_rfork()
m.destroy()
print(m.state, len(lab.machines))`,
	Output: "dead 0\n",
}, func(c *interp.Call, m *kernel.Machine) error { return m.Destroy(c.Context()) })

var stopWord = control(&interp.Word{
	Name: "stop",
	Doc: "Asks the machine to end, and waits until it has. " +
		"An init that is a program gets SIGTERM and knows what to do; under msh's own init every process gets it. What is left after the timeout is killed. What the machine was given it keeps until it is destroyed.",
	Params: []interp.Param{
		{Name: "timeout", Type: "duration", Default: `"10s"`, Pos: true, Doc: "how long to wait before it is killed"},
	},
	Example: `m = machine_rfork(init=["sh", "-c", "trap 'echo bye; exit 0' TERM; while :; do sleep 0.1; done"])
sleep("200ms")
m.stop(timeout="5s")
print(m.state)`,
	Output: "dead\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	timeout := interp.Duration(10 * time.Second)
	if err := c.Unpack(&timeout); err != nil {
		return nil, err
	}
	if v.planned() {
		v.would("stop")
		v.s.lab.PlanEnd(v.m, false)
		return nil, nil
	}
	return nil, v.m.Stop(c.Context(), time.Duration(timeout))
})

var killWord = control(&interp.Word{
	Name: "kill",
	Doc:  "Sends every process of the machine a signal. KILL is waited for.",
	Params: []interp.Param{
		{Name: "signal", Type: "string or int", Default: `"KILL"`, Pos: true, Doc: `"TERM", "HUP", "KILL", …, or its number`},
	},
	Errors: "a signal that Linux does not have",
	Example: `m = machine_rfork()
m.kill()
print(m.state)`,
	Output: "dead\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	sig := Signal{"KILL"}
	if err := c.Unpack(&sig); err != nil {
		return nil, err
	}
	n, err := kernel.ParseSignal(sig.name)
	if err != nil {
		return nil, err
	}
	if v.planned() {
		v.would("kill %s", sig.name)
		if kernel.SignalName(int(n)) == "KILL" {
			v.s.lab.PlanEnd(v.m, false)
		}
		return nil, nil
	}
	return nil, v.m.Kill(c.Context(), n)
})

var setWord = control(&interp.Word{
	Name: "set",
	Doc:  "Changes a resource of the machine while it runs: cpu, memory, pids, io, rlimit, children, uname, sysctl, netif (what its link does to the traffic) or routes. What the resource does not name stays as it was.",
	Params: []interp.Param{
		{Name: "resource", Type: "resource", Required: true, Pos: true, Doc: "what to change it to, as cpu(quota=20)"},
	},
	Errors: "a kind that is for life; a value out of range",
	Example: `m = machine_rfork(resources=[pids(100), uname(nodename="a")])
m.set(pids(50))
m.set(uname(nodename="b"))
print(m.run(["uname", "-n"]).stdout)`,
	Output: "b\n\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var r *Resource
	if err := c.Unpack(&r); err != nil {
		return nil, err
	}
	if err := kernel.CheckSet(r.res); err != nil {
		return nil, err
	}
	if v.planned() {
		v.would("set %s", r)
		return nil, nil
	}
	return nil, v.m.Set(r.res)
})

var statsWord = control(&interp.Word{
	Name: "stats",
	Doc: "Reads what the machine uses and has used. " +
		"On cgroup v1 the kernel counts memory_peak, throttled_seconds and io only for a machine with memory(), cpu() and io(); else they are None, 0.0 and None, and memory is the sum of its processes' resident sets.",
	Returns: "struct(cpu_seconds, memory, memory_peak, pids, throttled_seconds, io, netifs); memory in bytes, pids in tasks, io a struct(read_bytes, write_bytes) or None, netifs a dict from a name to what Netif.stats returns",
	Example: `m = machine_rfork(resources=[memory(max="64M")])
m.run("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")
s = m.stats()
print(s.cpu_seconds > 0, s.memory_peak > 0, s.pids)`,
	Output: "True True 1\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	if err := c.Unpack(); err != nil {
		return nil, err
	}
	if v.planned() {
		return v.would("stats")
	}
	s, err := v.m.Stats()
	if err != nil {
		return nil, err
	}
	counters, err := v.m.AllNetifStats()
	if err != nil {
		return nil, err
	}
	netifs := starlark.NewDict(len(counters))
	for _, n := range v.m.Netifs() {
		if c, ok := counters[n.Name]; ok {
			netifs.SetKey(starlark.String(n.Name), starlarkstruct.FromStringDict(starlarkstruct.Default, counted(c)))
		}
	}
	var io starlark.Value = starlark.None
	if s.ReadBytes != nil && s.WriteBytes != nil {
		io = starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
			"read_bytes": starlark.MakeUint64(*s.ReadBytes), "write_bytes": starlark.MakeUint64(*s.WriteBytes)})
	}
	return starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
		"cpu_seconds":       starlark.Float(s.CPUSeconds),
		"throttled_seconds": starlark.Float(s.ThrottledSeconds),
		"memory":            count(s.Memory),
		"memory_peak":       count(s.MemoryPeak),
		"pids":              starlark.MakeUint64(s.Pids),
		"io":                io,
		"netifs":            netifs,
	}), nil
})

func count(n *uint64) starlark.Value {
	if n == nil {
		return starlark.None
	}
	return starlark.MakeUint64(*n)
}

var waitWord = control(&interp.Word{
	Name: "wait",
	Doc:  "Waits for the end of the machine's init. A machine whose init is a program is dead then.",
	Params: []interp.Param{
		{Name: "timeout", Type: "duration", Default: "None", Pos: true, Doc: "how long at most; for ever when left out"},
	},
	Returns: "the init's code: 128 and the signal's number where a signal ended it",
	Errors:  "the time is up; the machine runs on",
	Example: `m = machine_rfork(init=["sh", "-c", "exit 7"])
print(m.wait(timeout="5s"), m.state)`,
	Output: "7 dead\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var timeout *interp.Duration
	if err := c.Unpack(durationPtr(&timeout)); err != nil {
		return nil, err
	}
	if v.planned() {
		return v.would("wait for its end")
	}
	var limit time.Duration
	if timeout != nil {
		limit = time.Duration(*timeout)
	}
	code, err := v.m.Wait(c.Context(), limit)
	if err != nil {
		return nil, err
	}
	return starlark.MakeInt(code), nil
})

func waitParams(p interp.Param) []interp.Param {
	return []interp.Param{p, {Name: "timeout", Type: "duration", Default: `"10s"`, Pos: true, Doc: "how long at most"}}
}

var waitPortWord = method(&interp.Word{
	Name:   "wait_port",
	Doc:    "Waits until something listens on a TCP port of the machine's network. No connection is made.",
	Params: waitParams(interp.Param{Name: "port", Type: "int", Required: true, Pos: true, Doc: "1 to 65535"}),
	Errors: "the time is up; the machine is dead",
	Example: `m = machine_rfork(resources=[netspace(), pidspace()])
m.spawn(["python3", "-c", "import socket,time; s=socket.socket(); s.bind(('',8080)); s.listen(); time.sleep(60)"])
m.wait_port(8080)
print("listening")`,
	Output: "listening\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var port Whole
	timeout := interp.Duration(10 * time.Second)
	if err := c.Unpack(&port, &timeout); err != nil {
		return nil, err
	}
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("wait_port: port: got %d, want 1 to 65535", port)
	}
	if v.planned() {
		v.would("wait for port %d", port)
		return nil, nil
	}
	return nil, v.m.WaitPort(c.Context(), int(port), time.Duration(timeout))
})

var waitRunWord = method(&interp.Word{
	Name:   "wait_run",
	Doc:    "Runs a program in the machine again and again until it ends with code 0.",
	Params: waitParams(interp.Param{Name: "argv", Type: "list or string", Required: true, Pos: true, Doc: "a program and its arguments, or a command for /bin/sh"}),
	Errors: "the time is up: with the last code and stderr; the machine is dead",
	Example: `m = machine_rfork(resources=[root("/")])
m.spawn("sleep 0.2; touch /tmp/done")
m.wait_run("test -e /tmp/done")
print("done")`,
	Output: "done\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var argv Argv
	timeout := interp.Duration(10 * time.Second)
	if err := c.Unpack(&argv, &timeout); err != nil {
		return nil, err
	}
	if v.planned() {
		v.would("wait until this succeeds: %s", (&command{argv: argv}).text())
		return nil, nil
	}
	return nil, v.m.WaitRun(c.Context(), &kernel.Command{Argv: argv}, time.Duration(timeout))
})

var waitFileWord = method(&interp.Word{
	Name:   "wait_file",
	Doc:    "Waits until a path is there in the machine.",
	Params: waitParams(interp.Param{Name: "path", Type: "string", Required: true, Pos: true, Doc: "a path in the machine"}),
	Errors: "the time is up; the machine is dead",
	Example: `m = machine_rfork(resources=[root("/")])
m.spawn("sleep 0.2; touch /tmp/ready")
m.wait_file("/tmp/ready")
print("ready")`,
	Output: "ready\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var path Text
	timeout := interp.Duration(10 * time.Second)
	if err := c.Unpack(&path, &timeout); err != nil {
		return nil, err
	}
	if v.planned() {
		v.would("wait for %s", path)
		return nil, nil
	}
	return nil, v.m.WaitFile(c.Context(), string(path), time.Duration(timeout))
})
