package interp

import "testing"

// TestExpect gives the message of each expectation; an empty one means that it is met.
func TestExpect(t *testing.T) {
	tests := []struct{ call, want string }{
		{`eq(1, 1.0)`, ""},
		{`eq([1, {"a": (2,)}], [1, {"a": (2,)}])`, ""},
		{`eq("1", 1)`, `expect.eq: got "1", want 1`},
		{`eq("` + long + `", "` + long + `x")`, "expect.eq: got and want differ:\n   got: \"" + long + "\"\n  want: \"" + long + "x\""},
		{`eq("a\nb\n", "a\nc\n")`, "expect.eq: got and want differ (-want +got):\n   a\n  -c\n  +b\n   "},
		{`ne(1, 2)`, ""},
		{`ne(1, 1)`, "expect.ne: got 1, want anything else"},
		{`true([0])`, ""},
		{`true("")`, `expect.true: got "", want a true value`},
		{`true(0, "no lines")`, "expect.true: no lines: got 0, want a true value"},
		{`contains("abc", "b")`, ""},
		{`contains({"k": 1}, "k")`, ""},
		{`contains((1, 2), 3)`, "expect.contains: want 3 in it, got (1, 2)"},
		{`contains("a\nb\n", "c")`, "expect.contains: want \"c\" in it, got:\n  a\n  b"},
		{`contains(3, 3)`, "expect.contains: unknown binary op: int in int"},
		{`matches("abc", "^a.c$")`, ""},
		{`matches("abc", "^b")`, `expect.matches: want a match of ^b, got "abc"`},
		{`matches("abc", "(")`, "expect.matches: error parsing regexp: missing closing ): `(`"},
		{`fails(lambda: fail("x"))`, ""},
		{`fails(lambda: fail("x"), "x")`, ""},
		{`fails(lambda: 7)`, "expect.fails: got 7, want a failure"},
		{`fails(lambda: fail("x"), contains="y")`, `expect.fails: want "y" in the failure, got "fail: x"`},
		{`eventually(lambda: "yes", timeout="10h")`, ""},
		{`eventually(lambda: 0, timeout="500ms", every="10h")`, "expect.eventually: not within 500ms: got 0, want a true value"},
		{`eventually(lambda: sleep("10h"), timeout="1ms")`, "expect.eventually: not within 1ms: the first call did not end"},
	}
	for _, test := range tests {
		want := test.want + "\n"
		if test.want == "" {
			want = "None\n"
		}
		if got := runSource(t, Options{}, "print(catch(lambda: expect."+test.call+").error)"); got != want {
			t.Errorf("%s: got %s, want %s", test.call, got, want)
		}
	}
}

const long = "0123456789012345678901234567890123456789012345678901234567890123456789"

func TestEventuallyRetriesFailures(t *testing.T) {
	got := runSource(t, Options{}, `
calls = []
def third():
    calls.append(1)
    if len(calls) < 3:
        fail("not yet")
    return "there"
print(expect.eventually(third, timeout="10h", every="1ms"), len(calls))`)
	if want := "there 3\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
