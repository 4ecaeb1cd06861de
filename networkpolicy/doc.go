// Package networkpolicy is the firewall of pods: NetworkPolicy
// (networking.k8s.io/v1) as Kubernetes documents it.
//
// Two ways lead from the model to a verdict, and share no code, so that each can
// judge the other:
//   - Evaluate is the reference: it reads policies and selectors for one packet,
//     and says which policies and rules decided.
//   - Planner turns the model into entries ("this address may reach that one at
//     these ports"), changes as few of them as what changed needs, and the modes
//     (nftables/) put them into the kernel.
//
// Invariants:
//   - What is not known allows nothing: a leased address whose pod is not known is
//     closed where its namespace has policies.
//   - Only pods of the pod network are isolated; host-network pods and nodes are not.
//   - Traffic between a pod and its own node, and of a pod with itself, passes.
package networkpolicy
