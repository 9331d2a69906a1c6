package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// user is a line of the machine's passwd(5).
type user struct {
	name, home string
	uid, gid   int
	groups     []int
}

// usersMax is the most that is read of the machine's passwd and group: they can
// be links to anything.
const usersMax = 4 << 20

// noID is the number that stands for "no change" in setresuid(2).
const noID = 1<<32 - 1

// parseID reads a user or group number. What would wrap must not pass: it would
// end up as somebody else, the root user most likely.
func parseID(text string) (int, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return int(n), err == nil && n != noID
}

const idRange = "a number below 4294967295"

// lookupUser finds USER or USER:GROUP, names or numbers, in the machine's own
// /etc/passwd and /etc/group. "" is root, of whom nothing is asked.
func (m *Machine) lookupUser(ctx context.Context, who string) (*user, error) {
	if who == "" {
		return &user{}, nil
	}
	name, group, hasGroup := strings.Cut(who, ":")
	u := &user{name: name, home: "/", uid: -1}
	if n, ok := parseID(name); ok {
		u.uid = n
	}
	passwd, err := m.users(ctx, "/etc/passwd", 7)
	if err != nil {
		return nil, err
	}
	for _, f := range passwd {
		uid, ok := parseID(f[2])
		if f[0] != name && (!ok || uid != u.uid) {
			continue
		}
		gid, okGroup := parseID(f[3])
		for i, good := range []bool{ok, okGroup} {
			if !good {
				return nil, bad("run", "user", who, fmt.Sprintf("%s as the %s id of %s in %s's /etc/passwd, which is %q", idRange, []string{"user", "group"}[i], f[0], m.Name(), f[2+i]))
			}
		}
		u.name, u.uid, u.gid, u.home = f[0], uid, gid, f[5]
		break
	}
	if u.uid < 0 {
		return nil, bad("run", "user", who, "a user of "+m.Name()+"'s /etc/passwd, or "+idRange)
	}
	return u, m.lookupGroups(ctx, u, who, group, hasGroup)
}

// lookupGroups finds the user's group where one was named, or those it is in.
func (m *Machine) lookupGroups(ctx context.Context, u *user, who, group string, named bool) error {
	found := false
	if n, ok := parseID(group); ok && named {
		u.gid, found = n, true
	}
	groups, err := m.users(ctx, "/etc/group", 4)
	if err != nil {
		return err
	}
	for _, f := range groups {
		takes := named && f[0] == group
		for _, member := range strings.Split(f[3], ",") {
			takes = takes || !named && member == u.name
		}
		if !takes {
			continue
		}
		gid, ok := parseID(f[2])
		switch {
		case !ok:
			return bad("run", "user", who, fmt.Sprintf("%s as the id of group %s in %s's /etc/group, which is %q", idRange, f[0], m.Name(), f[2]))
		case named:
			u.gid = gid
			return nil
		}
		u.groups = append(u.groups, gid)
	}
	if named && !found {
		return bad("run", "user", who, "a group of "+m.Name()+"'s /etc/group, or "+idRange)
	}
	return nil
}

// users reads the lines of passwd or group that have all their fields; there are
// none where the file is not there.
func (m *Machine) users(ctx context.Context, path string, fields int) ([][]string, error) {
	b, err := m.readFile(ctx, path, usersMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("run: user: %w", err)
	}
	var lines [][]string
	for line := range bytes.Lines(b) {
		if f := strings.Split(strings.TrimSpace(string(line)), ":"); len(f) >= fields {
			lines = append(lines, f)
		}
	}
	return lines, nil
}
