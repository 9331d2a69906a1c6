package builtins

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"msh/interp"
)

// TestTypes holds the descriptions of the types to values of them: what is described is there.
func TestTypes(t *testing.T) {
	const code = `lan = vnet("lan", subnet="10.0.0.0/24")
m = machine_rfork(name="m", resources=[netif(lan)])
n = machine_rfork(name="n", resources=[netspace()])
p = m.netif("eth0").capture("/tmp/msh-types-test.pcap")
for v in [p, lab, link(m, n), m, m.netif("eth0"), m.spawn("sleep 60"), m.given[0], route("10.0.0.0/8", dev="lo"), lan]:
    for name in dir(v):
        getattr(v, name)
    print(type(v), *dir(v))
host.run(["rm", "/tmp/msh-types-test.pcap"])
`
	got, err := script(t, code, false)
	if err != nil {
		t.Fatal(err)
	}
	methods := newSession(t, nil, false).methods()
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != len(types) {
		t.Fatalf("%d types are described, of %d there are values:\n%s", len(types), len(lines), got)
	}
	for i, typ := range types {
		want := []string{}
		for _, a := range typ.Attrs {
			want = append(want, a.Name)
			if a.Doc == "" {
				t.Errorf("%s.%s: no doc", typ.Name, a.Name)
			}
		}
		if !slices.IsSorted(want) {
			t.Errorf("%s: attributes not sorted: %v", typ.Name, want)
		}
		for _, w := range methods {
			if name, ok := strings.CutPrefix(w.Name, typ.Name+"."); ok {
				want = append(want, name)
			}
		}
		slices.Sort(want)
		has := strings.Fields(lines[i])
		if has[0] != strings.ToLower(typ.Name) {
			t.Errorf("got a %s, want a %s", has[0], typ.Name)
		}
		if typ.Name == "Resource" { // and the parameters of its word
			has = slices.DeleteFunc(has, func(name string) bool { return !slices.Contains(append(want, "resource"), name) })
		}
		if !slices.Equal(has[1:], want) {
			t.Errorf("%s has %v, want %v", typ.Name, has[1:], want)
		}
	}
}

// TestMachineAttrs holds the description of machines to what there is.
func TestMachineAttrs(t *testing.T) {
	i := slices.IndexFunc(types, func(typ interp.Type) bool { return typ.Name == "Machine" })
	var described []string
	for _, a := range types[i].Attrs {
		described = append(described, a.Name)
	}
	if there := slices.Sorted(maps.Keys(machineAttrs)); !slices.Equal(there, described) {
		t.Errorf("described are %v, want %v", described, there)
	}
}

// TestElsewhere tries what others call things: each has a hint, and none is a name that the value has.
func TestElsewhere(t *testing.T) {
	s := newSession(t, nil, true)
	for typ, names := range elsewhere {
		i := slices.IndexFunc(types, func(described interp.Type) bool { return strings.EqualFold(described.Name, typ) })
		if i < 0 {
			t.Errorf("%s: no such type", typ)
			continue
		}
		for name := range names {
			if slices.Contains(s.attrNames(types[i].Name), name) {
				t.Errorf("%s has %s", typ, name)
			}
		}
	}
	_, err := script(t, "host.cmd('x')", true)
	if err == nil || !strings.Contains(err.Error(), "machine has no .cmd field or method") || !strings.Contains(err.Error(), `hint: it is called otherwise here: m.run("…").stdout`) {
		t.Errorf("host.cmd: got %v", err)
	}
}

// TestMistakes tries what goes wrong before anything is made.
func TestMistakes(t *testing.T) {
	for _, test := range []struct{ code, want string }{
		{`host.spawn("x")`, "spawn: log: got None, want a file for what a process of the host writes"},
		{`routes("default")`, `hint: [route("default", via="10.0.0.1")]`},
		{`routes(route("10.0.0.0/8", dev="lo"))`, `hint: [route("10.0.0.0/8", dev="lo")]`},
		{`netif("wlan0", exclusive=True, rate=10)`, "netif: rate: got 10, want 1000 (1kbit)"},
		{`link(host, host, jitter="1ms")`, "link: jitter: got 1ms, want a delay beside it"},
		{"load('@msh//net.star', 'ping')\nping('b', host)", `ping: a: got "b", want a machine`},
	} {
		if _, err := script(t, test.code, true); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", test.code, err, test.want)
		}
	}
}

func TestDisplayFilter(t *testing.T) {
	for filter, want := range map[string]bool{
		"tcp.port == 80": true, "ip.addr==10.0.0.1 || arp": true, "http.request": true, "frame contains x": true,
		"prot tcp": false, "host 10.0.0.1 and tcp port 80": false, "tcp[13] & 2 != 0": true,
	} {
		if got := displayFilter(filter); got != want {
			t.Errorf("%q: got %v, want %v", filter, got, want)
		}
	}
}
