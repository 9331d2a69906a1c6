// Package protobuf stands in for google.golang.org/protobuf, by a replace line in
// msh's go.mod.
//
// containerd/cgroups returns a group's counters in structs that protoc-gen-go has
// made of a .proto file. msh reads their fields, and never puts one on a wire; yet
// the generated code would register 28 messages with protobuf's runtime whenever
// msh starts, which was a quarter of the time that all packages took to initialize,
// and a third of msh's size was there for it. Here the same generated code compiles
// into plain structs, and nothing happens at start.
//
// What is missing is what msh has no use for: marshalling, reflection, text. They
// are compile errors, but for String and ProtoReflect, which the generated code
// itself has to be able to name. A dependency that wants more of protobuf will not
// build; then this folder and the replace line go.
package protobuf
