package builtins

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"msh/interp"
	"msh/kernel"
	"msh/kernel/checkpoint"
	"msh/kernel/criu"
)

const (
	savedDoc = "Saves the running machine in one file: its processes with their memory, its files, sockets, addresses and limits. It stands still for the moment that its memory takes to be written. " +
		"The file is there whole or not at all. It holds what the machine has changed of its root, not the root itself. What cannot be saved is named before anything stops; docs/snapshots.md lists it. "
	savedErrors = "a process that cannot be saved, named with the reason; a machine without pidspace() or root(); no CRIU 4.2; a file that cannot be written"
)

var fileParam = interp.Param{Name: "path", Type: "string", Required: true, Pos: true, Doc: "the file, new or to be replaced; one that only its owner can read, as there may be secrets in memory"}

var filesOnlyParam = interp.Param{Name: "files_only", Type: "bool", Default: "False", Doc: "leave memory and processes out: what wakes has the files, and its init starts anew"}

var snapshotParams = []interp.Param{fileParam, filesOnlyParam}

const savedReturns = "struct(frozen: how long it stood still in seconds; bytes: of the file; digest: its identity)"

func (s *Session) snapshotWord() *interp.Word {
	return &interp.Word{
		Name:    "snapshot",
		Doc:     "The same as m.snapshot(path). " + savedDoc + "It runs on.",
		Params:  append([]interp.Param{{Name: "m", Type: "Machine", Required: true, Pos: true, Doc: "the machine"}}, snapshotParams...),
		Returns: savedReturns,
		Errors:  savedErrors,
		Needs:   "root",
		Example: `m = machine_rfork(name="box", resources=[root("/"), pidspace()])
m.write_file("/etc/motd", "saved")
snapshot(m, "/tmp/msh-example.msh")
m.destroy()
print(wake("/tmp/msh-example.msh").read_file("/etc/motd"))
host.run("rm /tmp/msh-example.msh")`,
		Output: "saved\n",
		Fn: func(c *interp.Call) (starlark.Value, error) {
			var v *Machine
			var path Text
			var filesOnly bool
			if err := c.Unpack(&v, &path, &filesOnly); err != nil {
				return nil, err
			}
			return v.save(c, string(path), kernel.SnapshotOptions{FilesOnly: filesOnly})
		},
	}
}

var machineSnapshotWord = control(&interp.Word{
	Name:    "snapshot",
	Doc:     savedDoc + "It runs on.",
	Params:  snapshotParams,
	Returns: savedReturns,
	Errors:  savedErrors,
	Example: `m = machine_rfork(name="box", resources=[root("/"), pidspace()])
m.run("setsid sh -c 'while sleep 0.01; do date +%N >/now; done' </dev/null >/dev/null 2>&1 &")
m.snapshot("/tmp/msh-example.msh")
print(m.state)
host.run("rm /tmp/msh-example.msh")`,
	Output: "running\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var path Text
	var filesOnly bool
	if err := c.Unpack(&path, &filesOnly); err != nil {
		return nil, err
	}
	return v.save(c, string(path), kernel.SnapshotOptions{FilesOnly: filesOnly})
})

var hibernateWord = control(&interp.Word{
	Name:    "hibernate",
	Doc:     savedDoc + "Then the machine is gone, until it is woken; its connections stand still, and go on if it is woken in time.",
	Params:  snapshotParams,
	Returns: savedReturns,
	Errors:  savedErrors,
	Example: `m = machine_rfork(name="box", resources=[root("/"), pidspace()])
m.run("setsid sh -c 'i=0; while sleep 0.01; do i=$((i+1)); echo $i >>/count; done' </dev/null >/dev/null 2>&1 &")
m.wait_file("/count", timeout="10s")
m.hibernate("/tmp/msh-example.msh")
print(m.state, lab.machines)
m = wake("/tmp/msh-example.msh")
n = len(m.read_file("/count").splitlines())
m.wait_run("test $(wc -l </count) -gt %d" % n, timeout="10s")
print(m.name, m.run("head -1 /count").stdout.strip())
host.run("rm /tmp/msh-example.msh")`,
	Output: "dead []\nbox 1\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var path Text
	var filesOnly bool
	if err := c.Unpack(&path, &filesOnly); err != nil {
		return nil, err
	}
	return v.save(c, string(path), kernel.SnapshotOptions{FilesOnly: filesOnly, Hibernate: true})
})

// save snapshots or hibernates a machine.
func (v *Machine) save(c *interp.Call, path string, o kernel.SnapshotOptions) (starlark.Value, error) {
	if v == v.s.host {
		return nil, kernel.NotHost(c.Word.Name)
	}
	if v.planned() {
		verb := "snapshot to "
		if o.Hibernate {
			verb = "hibernate to "
		}
		m, err := kernel.PlannedSnapshot([]*kernel.Machine{v.m})
		if err != nil {
			return nil, err
		}
		v.s.mu.Lock()
		v.s.planned[path] = m
		v.s.mu.Unlock()
		v.would("%s%s", verb, path)
		if o.Hibernate {
			v.s.lab.PlanEnd(v.m, true)
		}
		return interp.Unknown, nil
	}
	r, err := v.m.Snapshot(c.Context(), path, o)
	if err != nil {
		return nil, err
	}
	return saved(r), nil
}

func saved(r *kernel.SnapshotReport) starlark.Value {
	return starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
		"frozen": starlark.Float(r.Frozen.Seconds()),
		"bytes":  starlark.MakeInt64(r.Info.Size),
		"digest": starlark.String(r.Info.Digest),
	})
}

func (s *Session) wakeWord() *interp.Word {
	return &interp.Word{
		Name: "wake",
		Doc: "Wakes a machine that a file holds: here, or on another host than it was saved on. The file is read and checked to its end before anything is made. " +
			"Its networks are those of this lab of the same names, or others by nets=; those that the lab lacks are made as they were. " +
			"Beside the first, a second one from the same file takes another name and other addresses, and tcp=\"close\".",
		Params: []interp.Param{
			{Name: "path", Type: "string", Required: true, Pos: true, Doc: "the file"},
			{Name: "name", Type: "string", Default: "None", Doc: "another name"},
			{Name: "nets", Type: "dict", Default: "None", Doc: "vnets to use in the place of those it was on, by their names"},
			{Name: "tcp", Type: "string", Default: `"established"`, Doc: `what becomes of its connections: "established", they go on; "close", they are closed on its side`},
			{Name: "address", Type: "string or list", Default: "None", Doc: `other addresses, of its first interface; True has the vnets hand out new ones, with new MACs, on all`},
			{Name: "keep", Type: "bool", Default: "False", Doc: "whether the machine outlives the script"},
		},
		Returns: "the Machine; a list of them where the file holds a lab",
		Errors:  "a file that is cut off, changed or of a newer msh; a lower layer that is not here; a processor that lacks what the old one had; a name, an address or ids that are taken; no CRIU 4.2",
		Needs:   "root",
		Example: `lan = vnet("lan", subnet="10.0.0.0/24")
m = machine_rfork(name="box", resources=[root("/"), pidspace(), netif(lan)])
m.snapshot("/tmp/msh-example.msh")
w = wake("/tmp/msh-example.msh", name="second", address=True, tcp="close")
print(w.name, w.address, m.run(["ping", "-c1", "-W2", "second"]).ok)
host.run("rm /tmp/msh-example.msh")`,
		Output: "second 10.0.0.2 True\n",
		Fn:     s.wake,
	}
}

func (s *Session) wake(c *interp.Call) (starlark.Value, error) {
	var path, name Text
	var nets *starlark.Dict
	tcp := Text("established")
	var address starlark.Value
	var keep bool
	if err := c.Unpack(&path, &name, &nets, &tcp, &address, &keep); err != nil {
		return nil, err
	}
	o := kernel.WakeOptions{Name: string(name), Keep: keep || s.up, Pos: c.Pos().String()}
	switch tcp {
	case "established":
	case "close":
		o.TCP = criu.TCPClose
	default:
		return nil, fmt.Errorf(`wake: tcp: got %q, want "established" or "close"`, kernel.Short(string(tcp)))
	}
	var err error
	if o.Nets, err = otherNets(nets); err != nil {
		return nil, err
	}
	switch a := address.(type) {
	case nil:
	case starlark.Bool:
		o.Fresh = bool(a)
	default:
		list := texts(a)
		if list == nil {
			return nil, fmt.Errorf(`wake: address: got %s, want "10.0.0.2", a list of such addresses, or True`, a.Type())
		}
		var all []kernel.Address
		for _, text := range list {
			a, err := kernel.ParseAddress(text)
			if err != nil {
				return nil, fmt.Errorf("wake: address: %w", err)
			}
			all = append(all, a)
		}
		o.Addresses = [][]kernel.Address{all}
	}
	if s.dry {
		return s.planWake(string(path), o)
	}
	all, err := s.lab.WakeFile(c.Context(), string(path), o)
	if err != nil {
		return nil, err
	}
	return s.woken(all), nil
}

// woken are machines as wake returns them.
func (s *Session) woken(all []*kernel.Machine) starlark.Value {
	var list []starlark.Value
	for _, m := range all {
		v := s.value(m)
		if v.given == nil {
			for _, r := range m.Spec().Resources {
				v.given = append(v.given, resourceOf(r))
			}
		}
		list = append(list, v)
	}
	if len(list) == 1 {
		return list[0]
	}
	return starlark.NewList(list)
}

// otherNets reads what vnets stand in for others.
func otherNets(d *starlark.Dict) (map[string]string, error) {
	if d == nil {
		return nil, nil
	}
	m := map[string]string{}
	for _, item := range d.Items() {
		old, ok := starlark.AsString(item[0])
		v, isNet := item[1].(*VNet)
		if !ok || !isNet {
			return nil, interp.WithHint(fmt.Errorf("wake: nets: got %s: %s, want the name of a vnet that it was on, and one of this lab", item[0], item[1].Type()), `nets={"lan": other}`)
		}
		m[old] = v.v.Name()
	}
	return m, nil
}

// planWake tells what waking would make. A snapshot that the script itself would
// have made is known from the plan.
func (s *Session) planWake(path string, o kernel.WakeOptions) (starlark.Value, error) {
	s.mu.Lock()
	manifest := s.planned[path]
	s.mu.Unlock()
	if manifest == nil {
		info, err := checkpoint.Inspect(path)
		if err != nil {
			return nil, err
		}
		manifest = info.Manifest
	}
	nets, machines, plans, err := s.lab.PlanWake(manifest, o)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(s.out, "wake %s\n", path)
	for _, v := range nets {
		fmt.Fprintln(s.out, v.Plan())
	}
	for _, p := range plans {
		if err := p.Print(s.out); err != nil {
			return nil, err
		}
	}
	return s.woken(machines), nil
}

var cloneWord = control(&interp.Word{
	Name: "clone",
	Doc: "Makes a second machine of this one, which runs on: with its memory, processes and files as they are now, but a name of its own, and the next free addresses of its vnets. " +
		"In the copy, TCP connections are closed, as they are the first's; who listens goes on listening.",
	Params: []interp.Param{
		{Name: "name", Type: "string", Default: "None", Pos: true, Doc: "its name; NAME-2, NAME-3, … when left out"},
	},
	Returns: "the Machine",
	Errors:  savedErrors + "; a name that is taken; ids of its own, which the first has (uidspace)",
	Example: `m = machine_rfork(name="box", resources=[root("/"), pidspace()])
m.write_file("/dev/shm/state", "one")
c = m.clone()
c.write_file("/dev/shm/state", c.read_file("/dev/shm/state") + " two")
print(c.name, c.read_file("/dev/shm/state"), m.read_file("/dev/shm/state"))`,
	Output: "box-2 one two one\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var name Text
	if err := c.Unpack(&name); err != nil {
		return nil, err
	}
	o := kernel.WakeOptions{Name: string(name), Keep: v.m.Spec().Keep, Pos: c.Pos().String()}
	if v.planned() {
		m, err := kernel.PlannedSnapshot([]*kernel.Machine{v.m})
		if err != nil {
			return nil, err
		}
		o.Fresh, o.TCP = true, criu.TCPClose
		if o.Name == "" {
			o.Name = v.m.Name() + "-2"
		}
		v.would("clone to %s", o.Name)
		_, machines, plans, err := v.s.lab.PlanWake(m, o)
		if err != nil {
			return nil, err
		}
		if err := plans[0].Print(v.s.out); err != nil {
			return nil, err
		}
		return v.s.woken(machines), nil
	}
	m, err := v.m.Clone(c.Context(), o)
	if err != nil {
		return nil, err
	}
	return v.s.woken([]*kernel.Machine{m}), nil
})

// resourceOf is a resource that was read from a file as a value: with those of its
// parameters that are plain.
func resourceOf(res kernel.Resource) *Resource {
	r := &Resource{res: res, given: starlark.StringDict{}}
	for _, w := range resourceWords() {
		if w.Name == res.Kind() {
			r.word = w
		}
	}
	fields := map[string]any{}
	if b, err := json.Marshal(res); err == nil {
		json.Unmarshal(b, &fields)
	}
	for _, p := range r.word.Params {
		for field, v := range fields {
			if !strings.EqualFold(strings.ReplaceAll(p.Name, "_", ""), strings.Map(letter, field)) {
				continue
			}
			var value starlark.Value
			switch v := v.(type) {
			case string:
				value = starlark.String(v)
			case bool:
				value = starlark.Bool(v)
			case float64:
				value = starlark.MakeInt64(int64(v))
			default:
				continue
			}
			if value.Truth() {
				r.names = append(r.names, p.Name)
				r.given[p.Name] = value
			}
		}
	}
	return r
}

func letter(r rune) rune {
	if unicode.IsLetter(r) {
		return r
	}
	return -1
}
