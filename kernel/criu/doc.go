// Package criu drives CRIU, which saves a tree of processes in image files and
// makes it anew from them. It knows no machines: it is told which process is the
// root, what of the tree's surroundings is somebody else's, and where the images
// lie.
//
//	c, err := criu.Find(ctx)
//	problems := criu.Check(pids, criu.Bounds{})      // what cannot be saved, before anything stops
//	stats, err := c.Dump(ctx, &criu.Dump{Pid: pid, Images: dir, Nets: nets})
//	pid, err := c.Restore(ctx, &criu.Restore{Images: dir, Root: root, Nets: nets})
//
// # The line to criu
//
// Each call starts `criu swrk FD`, a worker for one request. Both sides write
// messages of criu's rpc.proto on a pair of SOCK_SEQPACKET sockets:
//
//	msh                                criu swrk
//	───                                ─────────
//	DUMP, options ───────────────────> freeze the tree
//	Hook(query-ext-files) <─────────── NOTIFY            (nothing written yet)
//	NOTIFY, success ─────────────────> write the images
//	Hook(post-dump) <───────────────── NOTIFY            (all still frozen)
//	NOTIFY, success ─────────────────> end the tree, or let it go on
//	Stats <─────────────────────────── DUMP, success
//
// A hook that fails makes criu give up: the tree that was to be dumped goes on,
// the one half restored is killed. The end of a context does the same, at the next
// hook; criu is not killed in the middle of a dump, for then code of its own
// would be left running inside the tree.
//
// criu's own error text is the first line it logged as one, which is often
// harmless. An Error of this package comes of the last one in the log.
package criu
