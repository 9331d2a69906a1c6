package checkpoint

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// Format is the version of the file that this package writes, and the newest
// that it reads. In 2 the processes of a machine are in the network that criu stands
// in, which a reader of 1 would take for its host's.
const Format = 2

// maxManifest is how long a manifest may be, in bytes: one of a lab of a
// thousand machines has a few MiB.
const maxManifest = 64 << 20

// Manifest says what a snapshot is and what waking it needs.
type Manifest struct {
	Format   int       `json:"format"` // set by Writer.Manifest
	Msh      string    `json:"msh"`    // version of the msh that made it
	Created  time.Time `json:"created"`
	Lab      string    `json:"lab,omitempty"`      // name of the lab
	WholeLab bool      `json:"wholeLab,omitempty"` // all of the lab, at one instant
	Host     Host      `json:"host"`
	Machines []Machine `json:"machines"` // one at least, in the order they are woken in
	// Networks are those of the lab, for whoever makes them.
	Networks json.RawMessage `json:"networks,omitempty"`
	// Cables are those between networks and machines of the lab.
	Cables json.RawMessage `json:"cables,omitempty"`
	// Annotations have the keys that Podman and Kubernetes use, and others.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Host is where the snapshot was taken.
type Host struct {
	Arch     string   `json:"arch,omitempty"`   // as in uname -m
	Kernel   string   `json:"kernel,omitempty"` // as in uname -r
	CPU      string   `json:"cpu,omitempty"`    // model name
	CPUFlags []string `json:"cpuFlags,omitempty"`
	Cgroup   int      `json:"cgroup,omitempty"` // 1 or 2
	// Features are properties of the kernel that matter to waking.
	Features []string `json:"features,omitempty"`
}

// Mode is what of a machine was saved.
type Mode string

// The two modes.
const (
	MemoryAndFiles Mode = "memory+files"
	FilesOnly      Mode = "files"
)

// Machine is one machine of a snapshot.
type Machine struct {
	Name string `json:"name"` // [a-z0-9][a-z0-9-]*, at most 63 bytes; also the name of its folder in the file
	Mode Mode   `json:"mode"`
	Why  string `json:"why,omitempty"` // why its memory is not there
	// Spec is what the machine was made from, and State what else its maker
	// wants back. This package does not look into them.
	Spec        json.RawMessage   `json:"spec,omitempty"`
	State       json.RawMessage   `json:"state,omitempty"`
	Needs       Needs             `json:"needs"`
	Bounds      *Bounds           `json:"bounds,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Needs is what has to be there for a machine to wake.
type Needs struct {
	Bases []Base `json:"bases,omitempty"` // lower layers, the topmost first
	CRIU  string `json:"criu,omitempty"`  // the version that dumped it; one as new restores it
}

// Base is a lower layer, which a snapshot does not contain.
type Base struct {
	Path     string `json:"path"`               // where it was
	Identity string `json:"identity,omitempty"` // tells whether another is the same: a digest, in the caller's own words
}

// Bounds are what a machine unpacks to at most; 0 is no bound. A reader takes a
// snapshot that has more than it says for a hostile one.
type Bounds struct {
	UpperBytes  int64 `json:"upperBytes,omitempty"` // contents of files, holes left out
	UpperFiles  int64 `json:"upperFiles,omitempty"` // names, directories included
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
}

// The annotations that Podman, CRI-O and containerd put on a checkpoint, as in
// checkpointctl's lib/annotations.go.
const (
	AnnotationEngine         = "org.criu.checkpoint.engine.name"
	AnnotationEngineVersion  = "org.criu.checkpoint.engine.version"
	AnnotationContainer      = "org.criu.checkpoint.container.name"
	AnnotationPod            = "org.criu.checkpoint.pod.name"
	AnnotationRootfs         = "org.criu.checkpoint.rootfsImageName"
	AnnotationRootfsSha      = "org.criu.checkpoint.rootfsImageSha"
	AnnotationRuntime        = "org.criu.checkpoint.runtime.name"
	AnnotationRuntimeVersion = "org.criu.checkpoint.runtime.version"
	AnnotationCRIU           = "org.criu.checkpoint.criu.version"
	AnnotationArch           = "org.criu.checkpoint.host.arch"
	AnnotationKernel         = "org.criu.checkpoint.host.kernel"
	AnnotationCgroup         = "org.criu.checkpoint.cgroup.version"
	AnnotationDistribution   = "org.criu.checkpoint.distribution.name"
	AnnotationDistributionV  = "org.criu.checkpoint.distribution.version"
)

// annotate fills in the annotations that follow from other fields and are not
// there yet, in copies of the maps.
func (m *Manifest) annotate() {
	version := ""
	if m.Host.Cgroup != 0 {
		version = fmt.Sprintf("v%d", m.Host.Cgroup)
	}
	m.Annotations = with(m.Annotations,
		AnnotationEngine, "msh", AnnotationEngineVersion, m.Msh, AnnotationPod, m.Lab,
		AnnotationRuntime, "msh", AnnotationRuntimeVersion, m.Msh,
		AnnotationArch, m.Host.Arch, AnnotationKernel, m.Host.Kernel, AnnotationCgroup, version)
	m.Machines = append([]Machine(nil), m.Machines...)
	for i := range m.Machines {
		c := &m.Machines[i]
		base := Base{}
		if len(c.Needs.Bases) > 0 {
			base = c.Needs.Bases[0]
		}
		c.Annotations = with(c.Annotations, AnnotationContainer, c.Name, AnnotationCRIU, c.Needs.CRIU,
			AnnotationRootfs, base.Path, AnnotationRootfsSha, base.Identity)
	}
}

// with adds pairs of key and value to a copy of a map, where the value is not
// empty and the key is new.
func with(m map[string]string, pairs ...string) map[string]string {
	out := map[string]string{}
	for k, v := range m {
		out[k] = v
	}
	for i := 0; i < len(pairs); i += 2 {
		if _, ok := out[pairs[i]]; !ok && pairs[i+1] != "" {
			out[pairs[i]] = pairs[i+1]
		}
	}
	return out
}

// Machine is the machine of that name, nil where there is none.
func (m *Manifest) Machine(name string) *Machine {
	for i := range m.Machines {
		if m.Machines[i].Name == name {
			return &m.Machines[i]
		}
	}
	return nil
}

// check tells what is wrong with a manifest of this format.
func (m *Manifest) check() error {
	if len(m.Machines) == 0 {
		return fmt.Errorf("manifest: no machine")
	}
	seen := map[string]bool{}
	for _, c := range m.Machines {
		switch {
		case !isMachine(c.Name):
			return fmt.Errorf("manifest: machine %q: want a name of a-z, 0-9 and -, at most 63 long", short(c.Name))
		case seen[c.Name]:
			return fmt.Errorf("manifest: machine %q twice", c.Name)
		case c.Mode != MemoryAndFiles && c.Mode != FilesOnly:
			return fmt.Errorf("manifest: machine %q: mode %q: want %q or %q", c.Name, short(string(c.Mode)), MemoryAndFiles, FilesOnly)
		case c.Bounds != nil && (c.Bounds.UpperBytes < 0 || c.Bounds.UpperFiles < 0 || c.Bounds.MemoryBytes < 0):
			return fmt.Errorf("manifest: machine %q: bounds below 0", c.Name)
		}
		seen[c.Name] = true
	}
	return nil
}

// parseManifest reads what Writer.Manifest wrote. Its digest was right.
func parseManifest(b []byte) (*Manifest, error) {
	var version struct {
		Format int    `json:"format"`
		Msh    string `json:"msh"`
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return nil, hostile("manifest: %v", err)
	}
	if version.Format > Format {
		return nil, &NewerError{version.Format, version.Msh}
	}
	if version.Format < 1 {
		return nil, hostile("manifest: format %d", version.Format)
	}
	m := new(Manifest)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, hostile("manifest: %v", err)
	}
	if err := m.check(); err != nil {
		return nil, hostile("%v", err)
	}
	return m, nil
}

const (
	maxMachine = 63 // bytes of a machine's name
	maxSection = 16 // bytes of a section's; both and the rest fit into a tar's 100
)

func isMachine(name string) bool {
	return name != "" && len(name) <= maxMachine && name[0] != '-' && strings.Trim(name, letters+"-") == ""
}

func isSection(name string) bool {
	return name != "" && len(name) <= maxSection && name[0] != '-' && name[0] != '.' && strings.Trim(name, letters+"-.") == ""
}

const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
