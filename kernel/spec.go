package kernel

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Spec is what a machine is to be: plain data, with a place in a script.
type Spec struct {
	Name      string     // [a-z0-9][a-z0-9-]*; "" lets the lab choose
	Init      []string   `json:",omitempty"` // argv of the machine's init; nil is msh's own
	Keep      bool       `json:",omitempty"` // outlives the script
	Resources []Resource // in the order given
	Pos       string     `json:",omitempty"` // FILE:LINE:COL of the call
}

// Resource is one thing a machine is given. It implements those of the phases
// below that it has; they run in the order of the table of kinds.
type Resource interface {
	Kind() string
	Mode() Mode
	Validate() error // of its own parameters; no system calls
}

// Mode is how a resource is taken.
type Mode string

// The three modes of taking a resource.
const (
	New       Mode = "new"       // made for the machine
	Shared    Mode = "shared"    // used together with the parent, under a policy
	Exclusive Mode = "exclusive" // the parent loses it until the machine ends
)

// The phases. Each is optional.
type (
	// Planner says which namespaces, limits, claims and trees it needs. Pure.
	Planner interface{ Plan(*Plan) error }
	// Preparer works in msh, before the clone.
	Preparer interface{ Prepare(*Txn) error }
	// Attacher works in msh while the child is parked in its namespaces.
	Attacher interface{ Attach(*Txn, *Child) error }
	// Enterer appends the child's system calls.
	Enterer interface{ Enter(*Steps) error }
	// setter changes a running machine.
	setter interface{ set(*Machine) error }
)

// keyed resources may be given several times, under different keys.
type keyed interface{ Key() string }

// keyWords are the parameters that are the keys of those.
var keyWords = map[string]string{"io": "device", "mount": "target", "sysctl": "key", "rlimit": "name", "device": "path"}

const (
	maxName  = 63 // bytes
	nameWant = "a name of a-z, 0-9 and -, at most 63 long, that does not begin with -"
)

// CheckName tells whether a machine or a lab may be called so.
func CheckName(kind, param, name string) error {
	ok := len(name) > 0 && len(name) <= maxName && name[0] != '-'
	for _, r := range name {
		ok = ok && (r == '-' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9')
	}
	if !ok {
		return bad(kind, param, name, nameWant)
	}
	return nil
}

// Validate checks the spec by itself: each resource, duplicates, and resources
// that cannot stand side by side.
func (s *Spec) Validate() error {
	if s.Name != "" {
		if err := CheckName("machine_rfork", "name", s.Name); err != nil {
			return err
		}
	}
	if s.Init != nil && (len(s.Init) == 0 || s.Init[0] == "") {
		return &ParamError{Kind: "machine_rfork", Param: "init", Got: "an empty list", Want: "the program and its arguments"}
	}
	for _, arg := range s.Init {
		if strings.ContainsRune(arg, 0) {
			return bad("machine_rfork", "init", arg, "texts without NUL")
		}
	}
	seen := map[string]bool{}
	for _, r := range s.Resources {
		if err := r.Validate(); err != nil {
			return err
		}
		key := r.Kind()
		if k, ok := r.(keyed); ok {
			key += "(" + k.Key() + ")"
		}
		if seen[key] {
			e := &ParamError{Kind: "machine_rfork", Param: "resources", Got: Short(key) + " twice", Want: "each once", Mend: "put both into one " + r.Kind() + "(…)"}
			if word, ok := keyWords[r.Kind()]; ok {
				e.Want, e.Mend = "each "+word+" once", ""
			} else if _, ok := r.(*Space); ok {
				e.Mend = ""
			}
			return e
		}
		seen[key] = true
	}
	for _, r := range s.Resources {
		if sys, ok := r.(*Sysctl); ok {
			if need := sys.space(); need != "" && !s.Has(need) && !(need == "netspace" && s.Has("netif")) {
				return &ParamError{Kind: "sysctl", Param: "key", Got: fmt.Sprintf("%q", sys.Name), Want: need + "() beside it, or it would be the parent's", Mend: "add " + need + "() to resources"}
			}
		}
	}
	return nil
}

// Has tells whether the spec names a resource of that kind.
func (s *Spec) Has(kind string) bool { return s.find(kind) != nil }

func (s *Spec) find(kind string) Resource {
	for _, r := range s.Resources {
		if r.Kind() == kind {
			return r
		}
	}
	return nil
}

type resourceJSON struct {
	Kind string
	With json.RawMessage
}

// MarshalJSON writes each resource with its kind beside it.
func (s Spec) MarshalJSON() ([]byte, error) {
	list := make([]resourceJSON, len(s.Resources))
	for i, r := range s.Resources {
		raw, err := json.Marshal(r)
		if err != nil {
			return nil, err
		}
		list[i] = resourceJSON{r.Kind(), raw}
	}
	type plain Spec // without this method
	return json.Marshal(struct {
		plain
		Resources []resourceJSON
	}{plain(s), list})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Spec) UnmarshalJSON(b []byte) error {
	type plain Spec
	in := struct {
		*plain
		Resources []resourceJSON
	}{plain: (*plain)(s)}
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	s.Resources = nil
	for _, r := range in.Resources {
		k := kindOf(r.Kind)
		if k == nil || k.New == nil {
			return fmt.Errorf("resource of kind %q: this msh knows %s", r.Kind, strings.Join(kindNames(), " "))
		}
		res := k.New()
		if err := json.Unmarshal(r.With, res); err != nil {
			return fmt.Errorf("%s: %w", r.Kind, err)
		}
		if res.Kind() != r.Kind { // a space, which has its name among its data
			return fmt.Errorf("resource of kind %q: its data say %q", r.Kind, res.Kind())
		}
		s.Resources = append(s.Resources, res)
	}
	return nil
}
