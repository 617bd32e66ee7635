//go:build programs

// Package programs names the command that tests/cluster/build compiles, so that go.mod keeps what it needs.
package programs

import _ "github.com/coredns/coredns"
