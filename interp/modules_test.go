package interp

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

const documented = `"""Things.

    load("@msh//things.star", "thing")
"""

_HIDDEN = 1

def thing(a, b = "x y", *rest, c = [1, 2], **more):
    """Does a thing. Well.

        thing(1)

    a: what.
    """

def plain(*, deep):
    return deep

def _own():
    """Is nobody's business."""
`

func TestModules(t *testing.T) {
	in := New(Options{Stdlib: fstest.MapFS{"things.star": {Data: []byte(documented)}}})
	for _, test := range []struct{ name, want string }{
		{"@msh//things.star", "@msh//things.star\n\nThings.\n\n    load(\"@msh//things.star\", \"thing\")\n\nthing  Does a thing\nplain  \n"},
		{"thing", "thing(a, b=\"x y\", *rest, c=[1, 2], **more)\n\nload(\"@msh//things.star\", \"thing\")\n\nDoes a thing. Well.\n\n    thing(1)\n\na: what.\n"},
		{"plain", "plain(*, deep)\n\nload(\"@msh//things.star\", \"plain\")\n\n\n"},
	} {
		got, err := in.Doc(test.name)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
	if got, err := in.Doc(""); err != nil || !strings.HasSuffix(got, "\n@msh//things.star  Things\n") {
		t.Errorf("the list: got %q, %v", got, err)
	}
	if _, err := in.Doc("thinng"); err == nil || !strings.Contains(err.Error(), "did you mean thing?") {
		t.Errorf("a slip: got %v", err)
	}
	if got, err := in.Doc("_own"); err == nil {
		t.Errorf("a module's own: got %q", got)
	}
}

func TestTypes(t *testing.T) {
	in := New(Options{
		Types: []Type{{Name: "Box", Doc: "A box.", Attrs: []Attr{{"lid", "what is on it"}}}},
		Named: []Named{{"crate", "Box", "The first box."}},
	})
	const page = "A box.\n\nBox.lid  what is on it\n"
	for name, want := range map[string]string{
		"Box": page, "box": page, "crate": "crate: Box\n\nThe first box.\n\n" + page, "Box.lid": "Box.lid\n\nwhat is on it\n",
	} {
		if got, err := in.Doc(name); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	if got, err := in.Doc(""); err != nil || !strings.Contains(got, "The first box\n") {
		t.Errorf("the list: got %q, %v", got, err)
	}
}
