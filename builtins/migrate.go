package builtins

import (
	"time"

	startime "go.starlark.net/lib/time"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"msh/interp"
	"msh/kernel"
)

var migrateWord = control(&interp.Word{
	Name: "migrate",
	Doc: "Moves the running machine to another host, with the networks it is on: processes, memory, files, sockets, addresses, limits. It is kept there, in a lab of the same name, and has ended here. " +
		"The other host needs msh, criu and what the machine's root stands on; a root that is a directory is sent along where it is not there yet. The line is the stock ssh client's, with what ~/.ssh/config says. " +
		"Where the kernel tells which pages have changed, memory is sent ahead while the machine runs, in rounds; else it stands still while all is sent. " +
		"Whatever breaks, it runs on exactly one of the two. If the line breaks at the very end and the other host cannot be reached to tell whether it has got the machine, that is an error, and the machine stands still until it is migrated there once more.",
	Params: []interp.Param{
		{Name: "host", Type: "string", Required: true, Pos: true, Doc: `"ssh://[USER@]HOST[:PORT]", or as ssh(1) has it`},
		{Name: "rounds", Type: "int", Default: "None", Doc: "how many times memory is sent ahead at most; 0 for not at all, None for as often as that makes the rest smaller"},
		{Name: "msh", Type: "string", Default: `"msh"`, Doc: `the command there, such as "sudo msh"`},
		{Name: "patience", Type: "duration", Default: `"2m"`, Doc: "for how long the other host is asked whether it has the machine, when the line broke at the end"},
	},
	Returns: "a struct with host, lab and name (where it runs now), mode (\"pre-copy\" or \"stop-and-copy\"), why (there was no pre-copy), rounds, frozen (how long it stood still, a duration), sent (bytes), layers (roots that were sent along), left (a list of what did not come along, in words)",
	Errors:  "a host that cannot be reached, or has no msh or criu; a processor that lacks what this one has; processes that cannot be saved. After these the machine runs on here",
	Example: `m = machine_rfork(resources=[root("/"), pidspace()])
r = catch(lambda: m.migrate("ssh://nobody@127.0.0.1:1"))
print(r.ok, m.state)`,
	Output: "False running\n",
}, func(c *interp.Call, v *Machine) (starlark.Value, error) {
	var host, command string
	var rounds starlark.Value = starlark.None
	patience := interp.Duration(kernel.DefaultPatience)
	if err := c.Unpack(&host, &rounds, &command, &patience); err != nil {
		return nil, err
	}
	to, err := kernel.ParseRemote(host)
	if err != nil {
		return nil, err
	}
	to.Command = command
	o := kernel.MigrateOptions{Rounds: -1, Patience: time.Duration(patience)}
	if rounds != starlark.None {
		if err := starlark.AsInt(rounds, &o.Rounds); err != nil || o.Rounds < 0 {
			return nil, &kernel.ParamError{Kind: "migrate", Param: "rounds", Got: rounds.String(), Want: "0 or more, or None"}
		}
	}
	if v.planned() {
		v.would("migrate to %s", to)
		v.s.lab.PlanEnd(v.m, true)
		return interp.Unknown, nil
	}
	r, err := v.m.Migrate(c.Context(), to, o)
	if err != nil {
		return nil, err
	}
	return starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{
		"host": starlark.String(r.Host), "lab": starlark.String(r.Lab), "name": starlark.String(v.m.Name()),
		"mode": starlark.String(r.Mode), "why": starlark.String(r.Why), "rounds": starlark.MakeInt(r.Rounds),
		"frozen": startime.Duration(r.Frozen), "sent": starlark.MakeInt64(r.Sent), "layers": textList(r.Layers), "left": textList(r.Left),
	}), nil
})

func textList(list []string) *starlark.List {
	var all []starlark.Value
	for _, s := range list {
		all = append(all, starlark.String(s))
	}
	return starlark.NewList(all)
}
