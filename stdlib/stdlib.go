// Package stdlib holds the modules that come with msh, written in its own language.
// A script loads them with load("@msh//wait.star", "retry").
//
// A module has a doc string at its top, and so has every function that it exports. Names that begin with an underscore
// are its own.
package stdlib

import "embed"

// FS holds the modules, at its top.
//
//go:embed *.star
var FS embed.FS
