// Package checkpoint reads and writes snapshots: one file that holds a machine,
// or all machines of a lab. It knows nothing of how a machine is made or woken;
// to it a machine is a name, a spec that it does not look into, an overlay's
// upper directory and a directory of memory images.
//
// # The file
//
// Outside it is a plain tar (POSIX.1-2001, "pax"), so that tar, bsdtar and file
// managers list it. What is large is cut into chunks of 1 MiB, each of them a
// zstd frame of its own:
//
//	┌──────────────────────────────────────┐
//	│ manifest.json                        │ what it is, what waking it needs
//	├──────────────────────────────────────┤
//	│ db/upper/00000000.zst                │ ┐ section "upper" of machine db:
//	│ db/upper/00000001.zst           last │ ┘ a pax tar, cut and compressed
//	├──────────────────────────────────────┤
//	│ db/tree.shm/00000000.zst        last │   section "tree.shm": another tree
//	├──────────────────────────────────────┤
//	│ db/memory/00000000.zst               │ ┐ section "memory": a tar of CRIU's
//	│ …                                    │ │ images
//	│ db/memory/00000258.zst          last │ ┘
//	├──────────────────────────────────────┤
//	│ app/upper/00000000.zst …             │ a lab has more machines
//	├──────────────────────────────────────┤
//	│ SHA256SUMS                           │ of all members above, in order
//	├──────────────────────────────────────┤
//	│ 1024 zero bytes                      │ a tar's end
//	└──────────────────────────────────────┘
//
// A member is a record of three blocks of 512 bytes and its data, padded to 512:
//
//	pax header │ "NN comment=sha256:HEX raw:N[ last]\n" │ ustar header │ data │ 0…
//
// The comment keyword is POSIX's own and every tar passes over it. So a chunk's
// digest, its size once unpacked, and whether its section ends with it, all
// stand before the chunk, and a chunk is checked before a byte of it is used.
//
// Why in this way:
//
//   - Memory is written while its digest is not known yet, and is read by one
//     who cannot seek. One digest behind it all would be known only after the
//     machine is unpacked; with one per chunk nothing unchecked ever leaves the
//     reader. SHA256SUMS, which the reader knows by heart when it comes, tells
//     that nothing is missing. Its own digest is the snapshot's identity.
//   - A tar wants a member's size before its data. A chunk is in memory when it
//     is written, so its compressed size is known; a section's need not be.
//   - Chunks do not depend on each other: as many cores as there are compress
//     and unpack them, and an inspection reads heads only.
//   - A tar's checksums cover heads only and are weak. Here a reader writes the
//     head anew from what it understood of it and compares, so that every bit
//     of a file that can differ makes it refused. Mode, owner and time of the
//     members are constants.
//   - A chunk unpacks to at most 4 MiB, and not to more than its head says:
//     no member is a bomb. What a whole machine may unpack to can be bounded in
//     the manifest and by the caller.
//
// By hand:
//
//	tar xOf FILE manifest.json
//	tar xOf FILE db/upper | zstd -d | tar tv
//	tar xf FILE && sha256sum -c SHA256SUMS
//
// # The sections
//
// "upper" is a tar of a directory tree, directories before what is in them:
// regular files, links, hard links, fifos, devices (an overlay's whiteout is
// character device 0/0), with owners, nanoseconds of times, and every extended
// attribute as GNU tar writes them (SCHILY.xattr.NAME, with = and % of a name
// as %3D and %25; of ACLs it knows another notation, and passes over them). Holes are kept, in GNU's sparse format 1.0. A socket is an
// empty file with the comment "socket": tar has no kind for it. Not kept:
// inode flags (chattr), and which whiteouts shared an inode. "tree.NAME" is such
// a tar of another tree: what is mounted on a place in it is left out.
//
// "memory", and "memory.1", "memory.2", … of pre-copy rounds, are tars of
// regular files, of directories, and of CRIU's "parent" links between them.
// Any other name is a stream of bytes, of which this package knows nothing.
// Sections come in the order they were written in; memory is best last.
//
// # Versions
//
// manifest.json is always the first member, has the record's head above, and
// has "format" in it. All else may change with the format. A reader refuses a
// format above its own with ErrNewer, and ignores fields it does not know.
//
// # Unpacking
//
// The tree is made in an empty directory, below a descriptor, a name at a time:
// openat2(2) with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, O_EXCL for all. A
// name whose directory is not the one that was last made, or one above it, is
// refused, so no link is ever walked through, wherever it points. Where unpacking
// fails, the directory is emptied again.
//
// # Worked example
//
//	w, err := checkpoint.Create("db.msh", checkpoint.Options{})
//	defer w.Abort() // no effect after Commit
//	err = w.Manifest(&checkpoint.Manifest{Machines: []checkpoint.Machine{{Name: "db", Mode: checkpoint.MemoryAndFiles}}})
//	err = w.Upper(ctx, "db", upperFD)
//	err = w.Images(ctx, "db", checkpoint.SectionMemory, imagesFD)
//	info, err := w.Commit()
//
//	r, err := checkpoint.Open("db.msh")
//	defer r.Close()
//	for {
//		s, err := r.Next()
//		if err == io.EOF {
//			break // whole, and what it was when it was written: only now act on it
//		}
//		switch s.Name {
//		case checkpoint.SectionUpper:
//			err = r.UnpackUpper(ctx, upperFD, checkpoint.UnpackOptions{})
//		case checkpoint.SectionMemory:
//			err = r.UnpackImages(ctx, imagesFD, checkpoint.UnpackOptions{})
//		}
//	}
package checkpoint
