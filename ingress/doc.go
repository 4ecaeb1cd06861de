// Package ingress turns Ingresses into what a proxy routes by: hosts with their paths,
// backends with their endpoints, certificates.
//
// Invariants:
//   - The same snapshot gives the same plans; the Planner keeps only which Ingress touches
//     which host, Service and Secret, so that work follows what changed.
//   - Of two Ingresses that ask for the same the older keeps it, of two of one age the first
//     by namespace and name; the other is told.
//   - What an annotation asks for is done, or it is named in a problem. When it keeps
//     somebody out and is not done, the paths of its Ingress answer 503.
//   - Nobody gets the certificate of another host, nor one of another namespace than that of
//     an Ingress that routes the host.
package ingress
