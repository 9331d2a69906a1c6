package builtins

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A resource keeps a copy of the lists it is given: the caller goes on with its own.
func TestResourceCopies(t *testing.T) {
	out, err := script(t, `
options = ["ro"]
pair = [0, 1000, 10]
ids = [pair]
m = mount("/etc", "/x", options=options)
u = uidspace(map=ids)
options.append("wrong")
pair[1] = 5
ids.append("more")
print(m, u, options, ids)
print(catch(lambda: m.options.append("nosuid")).error)
print(catch(lambda: u.map[0].append(1)).error)
print(m == mount("/etc", "/x", options=["ro"]), cpu(set=set([0, 1])))
`, true)
	if err != nil {
		t.Fatal(err)
	}
	want := `mount("/etc", "/x", options=["ro"]) uidspace(map=[[0, 1000, 10]]) ["ro", "wrong"] [[0, 5, 10], "more"]
append: cannot append to frozen list
append: cannot append to frozen list
True cpu(set=set([0, 1]))
`
	if d := cmp.Diff(want, out); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
