package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"msh/kernel"
)

func (a *app) inspectCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "inspect MACHINE|FILE",
		Short: "tell all about a machine, as JSON, or what is in a snapshot",
		Long:  "Prints all about a machine, as JSON; or what is in the file of a snapshot, without unpacking it.",
		Args:  takes(1, 1, "MACHINE or LAB/MACHINE, or the FILE of a snapshot"),
		RunE: func(c *cobra.Command, args []string) error {
			if isSnapshot(args[0]) {
				return a.inspectFile(args[0], asJSON)
			}
			h, err := a.rootHost(c)
			if err != nil {
				return err
			}
			m, err := h.Find(args[0])
			if err != nil {
				return err
			}
			defer m.Close()
			all, err := inspect(h, m)
			if err != nil {
				return err
			}
			return writeJSON(a.stdout, all)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for programs; of a machine it always is")
	return c
}

// inspected is a machine in `msh inspect`.
type inspected struct {
	Name       string            `json:"name"`
	Lab        string            `json:"lab"`
	State      string            `json:"state"`
	Pid        int               `json:"pid"` // of its init, seen from the host
	Parent     string            `json:"parent"`
	Children   []string          `json:"children"`
	Init       []string          `json:"init"` // null: msh's own
	Keep       bool              `json:"keep"`
	Made       string            `json:"made"`  // where in the script
	Given      []map[string]any  `json:"given"` // its resources, with their parameters as scripts name them
	IDs        []idRange         `json:"ids"`   // as the host sees them; empty where they are the host's
	Namespaces map[string]string `json:"namespaces"`
	Cgroups    []string          `json:"cgroups"`
	Logs       []string          `json:"logs"`
	Directory  string            `json:"directory"`
	Stats      map[string]any    `json:"stats"` // null for one that has ended
}

type idRange struct {
	Inside  uint32 `json:"inside"`
	Outside uint32 `json:"outside"`
	Size    uint32 `json:"size"`
}

func inspect(h *kernel.Host, m *kernel.Machine) (*inspected, error) {
	spec := m.Spec()
	i := &inspected{
		Name: m.Name(), Lab: m.LabName(), State: m.State(), Pid: m.Pid(), Parent: m.Parent().Name(), Children: []string{},
		Init: spec.Init, Keep: spec.Keep, Made: spec.Pos, Given: []map[string]any{}, IDs: []idRange{}, Namespaces: map[string]string{},
		Cgroups: m.GroupNames(), Directory: m.Dir(),
	}
	all, err := h.Machines()
	if err != nil {
		return nil, err
	}
	for _, o := range all {
		if o.LabName() == m.LabName() && o.Parent().Name() == m.Name() {
			i.Children = append(i.Children, o.Name())
		}
		o.Close()
	}
	for _, r := range spec.Resources {
		given, err := parameters(r)
		if err != nil {
			return nil, err
		}
		if given["name"] == r.Kind() {
			delete(given, "name") // a space is called what it is
		}
		given["kind"], given["mode"] = r.Kind(), r.Mode()
		i.Given = append(i.Given, given)
	}
	for _, r := range m.IDs() {
		i.IDs = append(i.IDs, idRange{r.Inside, r.Outside, r.Size})
	}
	if i.Logs, err = logs(m); err != nil {
		return nil, err
	}
	if s := counters(m); s != nil {
		if i.Stats, err = statistics(m, s); err != nil {
			return nil, err
		}
		i.Namespaces = namespaces(m.Pid())
	}
	return i, nil
}

// namespaces are those of a process, by the kernel's names; none if it has just ended.
func namespaces(pid int) map[string]string {
	all := map[string]string{}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/ns/*", pid))
	for _, l := range links {
		if to, err := os.Readlink(l); err == nil && !strings.HasSuffix(l, "_for_children") {
			all[filepath.Base(l)] = to
		}
	}
	return all
}

// logs are the files that the machine's init and its spawned programs write to.
func logs(m *kernel.Machine) ([]string, error) {
	files, err := m.LogFiles()
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	return append([]string{}, files...), nil
}

// parameters returns the fields of a struct under the names they have in scripts: ReadBPS is read_bps.
func parameters(v any) (map[string]any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	fields := map[string]any{}
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, err
	}
	named := map[string]any{}
	for name, value := range fields {
		named[scriptName(name)] = value
	}
	return named, nil
}

// scriptName puts a field's name as scripts write it: ReadBPS is read_bps, CPUSeconds is cpu_seconds.
func scriptName(field string) string {
	var b strings.Builder
	runes := []rune(field)
	for i, r := range runes {
		if i > 0 && unicode.IsUpper(r) && (unicode.IsLower(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
