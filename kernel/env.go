package kernel

import (
	"maps"
	"slices"
	"strings"
)

// DefaultPath is where programs are looked for in a machine.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// DefaultEnv is the environment of a machine's processes: nothing of the
// caller's, these few, and what is given.
func DefaultEnv(given map[string]string) []string {
	env := map[string]string{"PATH": DefaultPath, "HOME": "/root", "USER": "root", "LOGNAME": "root"}
	maps.Copy(env, given)
	list := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	return list
}

func pathOf(env []string) string {
	for _, e := range env {
		if p, ok := strings.CutPrefix(e, "PATH="); ok {
			return p
		}
	}
	return DefaultPath
}
