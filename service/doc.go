// Package service turns Services and their endpoints into plans: frontends, each with the slots among which its
// connections are spread. The modes in its subpackages (nftables …) render the same plan, each in its own way.
//
// Planning is pure: plans of one state are equal, whatever the order of changes.
package service
