package netx

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// perInterface are the folders under /proc/sys/net that have one for every
// interface, and one that is the default for those to come.
var perInterface = []string{"ipv4/conf", "ipv6/conf", "ipv4/neigh", "ipv6/neigh"}

const procNet = "/proc/sys/net"

// eachSysctl calls f with the key and the value of every parameter of an interface
// that can be read, and its default, in the calling thread's namespace.
func eachSysctl(name string, f func(key, value, normal string)) error {
	for _, folder := range perInterface {
		files, err := os.ReadDir(filepath.Join(procNet, folder, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6, or none on this interface
		}
		if err != nil {
			return err
		}
		for _, file := range files {
			value, err := os.ReadFile(filepath.Join(procNet, folder, name, file.Name()))
			if err != nil {
				value = nil // stable_secret while there is none (EIO)
			}
			normal, _ := os.ReadFile(filepath.Join(procNet, folder, "default", file.Name()))
			f(folder+"/"+file.Name(), strings.TrimSpace(string(value)), strings.TrimSpace(string(normal)))
		}
	}
	return nil
}

// saveSysctls reads those parameters of an interface that differ from the default.
func saveSysctls(name string) (map[string]string, error) {
	saved := map[string]string{}
	err := eachSysctl(name, func(key, value, normal string) {
		if value != normal {
			saved[key] = value
		}
	})
	return saved, err
}

// restoreSysctls writes those that are not as they were. Twice, as one changes
// another: net.ipv6.conf.DEV.stable_secret sets addr_gen_mode, and goes before it.
func restoreSysctls(name string, saved map[string]string) error {
	writeSysctls(name, saved)
	return writeSysctls(name, saved)
}

func writeSysctls(name string, saved map[string]string) error {
	var errs []error
	err := eachSysctl(name, func(key, value, want string) {
		if v, ok := saved[key]; ok {
			want = v
		}
		if value == want {
			return
		}
		folder, file := filepath.Split(key)
		if err := os.WriteFile(filepath.Join(procNet, folder, name, file), []byte(want), 0); err != nil {
			errs = append(errs, fmt.Errorf("set net/%s to %q: %w", key, want, err))
		}
	})
	return errors.Join(append(errs, err)...)
}
