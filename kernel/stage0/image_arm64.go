package stage0

import _ "embed"

//go:embed stage0_arm64.elf
var image []byte
