package kernel

import (
	"strings"
	"testing"
)

// A number that would wrap is nobody, and not the root user.
func TestUserNumbers(t *testing.T) {
	ctx := t.Context()
	roots(t, func(t *testing.T, m *Machine, _ string) {
		as := func(user string) string {
			r, err := m.Run(ctx, &Command{Argv: []string{"id", "-u"}, User: user}, nil, long)
			if err != nil {
				return err.Error()
			}
			return string(r.Stdout)
		}
		passwd := "a:x:4294967295:0::/:\nb:x:4294967296:0::/:\nc:x:-1:0::/:\nd:x::0::/:\ne:x:1000:4294967296::/:\nf:x:1000:0::/:\n"
		if err := m.WriteFile(ctx, "/etc/passwd", []byte(passwd), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := m.WriteFile(ctx, "/etc/group", []byte("wide:x:4294967296:\nfs:x:4294967295:f\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		for user, value := range map[string]string{"a": "4294967295", "b": "4294967296", "c": "-1", "d": "", "e": "4294967296"} {
			contains(t, as(user), `got "`+user+`"`, "id of "+user+" in", `"`+value+`"`, "below 4294967295")
		}
		contains(t, as("f"), `got "f"`, "group fs", `"4294967295"`)
		contains(t, as("f:wide"), `got "f:wide"`, "group wide", `"4294967296"`)
		for _, user := range []string{"4294967295", "4294967296", "-1", "f:4294967295"} {
			contains(t, as(user), `got "`+user+`"`, "/etc/")
		}
		want(t, "a good one", "1000\n", as("f:7"))
		want(t, "without a line", "0\n", as("0"))
	})
}

// The machine's passwd is as long as it likes, and msh does not read it all.
func TestUserEndless(t *testing.T) {
	ctx := t.Context()
	roots(t, func(t *testing.T, m *Machine, _ string) {
		as := func() string {
			_, err := m.Run(ctx, &Command{Argv: []string{"id"}, User: "ann"}, nil, long)
			if err == nil {
				return ""
			}
			return err.Error()
		}
		if err := m.WriteFile(ctx, "/etc/group", []byte(strings.Repeat("x", usersMax)), 0o644); err != nil {
			t.Fatal(err)
		}
		want(t, "just short enough", "", as())
		if err := m.WriteFile(ctx, "/etc/group", []byte(strings.Repeat("x", usersMax+1)), 0o644); err != nil {
			t.Fatal(err)
		}
		contains(t, as(), "user", "/etc/group", "more than 4194304 bytes")
		sh(t, m, "rm /etc/passwd; ln -s /dev/zero /etc/passwd")
		contains(t, as(), "user", "/etc/passwd", "not a regular file")
	})
}
