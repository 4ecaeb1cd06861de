// Package service turns Services and their endpoints into plans: frontends, each
// with the slots among which its connections are spread. The modes below it
// (nftables …) render the same plan, each in its way.
//
// Plan is pure, and plans of one state are equal, whatever order things came in.
package service
