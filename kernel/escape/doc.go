// Package escape is what tries to get out of machines: programs that a machine's
// root might run, each aimed at one way in which containers have been left.
//
// An attack runs inside, by every entry (init, run, spawn, shell, exec, a
// supervisor's restart, a machine inside the machine), at each level of
// security(…), with the host's ids and with its own. It ends in one of
//
//	held      the kernel, or msh, refused it
//	ESCAPED   it reached something that is not the machine's
//	absent    what it attacks is not on this kernel
//
// and it is written down (Attack.From) from which level on it must be held. Below
// that the level permits it by design, and the test does not mind if it succeeds.
// That an attack can succeed at all is shown by running it outside, where nothing
// holds it: a control that is held there is a test that cannot fail, and fails.
//
// Attacks are harmless where they succeed. What they aim at is the test's own: a
// file in a tmpfs of its own, a terminal, a key, a process. Settings of the whole
// host are opened for writing and closed again; calls that would change it get
// arguments that the kernel refuses only after it has looked at who asks.
//
// The package is used by its own tests alone; `make escape` prints their table.
package escape
