// Package protoregistry is empty. Tests of go.starlark.net name it, which msh does not run,
// but go mod tidy wants to find.
package protoregistry
