package kernel

import "sync"

// kind is a row of the table: all that is known of a sort of resource outside
// its own file.
type kind struct {
	Name  string
	Modes []Mode
	New   func() Resource // nil where it can only be listed yet
	// List says what of it can be named here, and who has it.
	List func(*View) ([]Available, error)
}

// kinds is the one place where an order is written: every phase goes through
// resources in the order of this table. What a later row needs, an earlier row
// has made (a root before the mounts in it); what cannot be taken back comes last.
func kinds() []kind {
	space := func(name string) kind {
		return kind{name, []Mode{New}, func() Resource { return &Space{Name: name} }, listSpace(name)}
	}
	return []kind{
		{"cpu", []Mode{Shared, Exclusive}, func() Resource { return &CPU{} }, listCPUs},
		{"memory", []Mode{Shared, Exclusive}, func() Resource { return &Memory{} }, listMemory},
		{"pids", []Mode{Shared}, func() Resource { return &Pids{} }, listPids},
		{"io", []Mode{Shared}, func() Resource { return &IO{} }, listIO},
		{"children", []Mode{Shared}, func() Resource { return &Children{} }, listChildren},
		{"uidspace", []Mode{New, Exclusive}, func() Resource { return &Uidspace{} }, listUids},
		space("cgroupspace"),
		{"timespace", []Mode{New}, func() Resource { return &Timespace{} }, listSpace("timespace")},
		space("ipcspace"),
		space("netspace"),
		{"netif", []Mode{New, Shared, Exclusive}, func() Resource { return &Netif{} }, listNetifs},
		{"netaddr", []Mode{Shared}, func() Resource { return &Netaddr{} }, listNetaddrs},
		{"routes", []Mode{New}, func() Resource { return &Routes{} }, listTables},
		space("mountspace"),
		{"root", []Mode{New, Shared}, func() Resource { return &Root{} }, listRoot},
		space("pidspace"),
		{"view", []Mode{New}, func() Resource { return &ProcView{} }, listView},
		{"mount", []Mode{New, Shared}, func() Resource { return &Mount{} }, listMount},
		{"uname", []Mode{New}, func() Resource { return &Uname{} }, listUname},
		{"sysctl", []Mode{New}, func() Resource { return &Sysctl{} }, listSysctls},
		{"rlimit", []Mode{Shared}, func() Resource { return &Rlimit{} }, listRlimits},
		{"security", []Mode{Shared}, func() Resource { return &Security{} }, listSecurity},
		{"device", []Mode{Shared}, func() Resource { return &Device{} }, listDevices},
		{"controller", nil, nil, listControllers},
	}
}

func kindOf(name string) *kind {
	if i := rankOf(name); i >= 0 {
		return &kinds()[i]
	}
	return nil
}

// rankOf is the place of a kind in the table.
func rankOf(name string) int {
	if rank, ok := ranks()[name]; ok {
		return rank
	}
	return -1
}

var ranks = sync.OnceValue(func() map[string]int {
	m := map[string]int{}
	for i, k := range kinds() {
		m[k.Name] = i
	}
	return m
})

func kindNames() []string {
	var names []string
	for _, k := range kinds() {
		if k.New != nil {
			names = append(names, k.Name)
		}
	}
	return names
}
