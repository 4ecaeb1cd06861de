// Package ingress converts Ingresses to the proxy's configuration: hosts with paths, backends with endpoints,
// certificates.
//
// Invariants:
//   - The same snapshot gives the same plans. The Planner remembers only which Ingress uses which host, Service and
//     Secret, so that work follows the change.
//   - Of two Ingresses that claim the same, the older one keeps it; ties go by namespace and name. The other one gets
//     a problem.
//   - An annotation takes effect or is reported in a problem. If it restricts access and does not take effect, the
//     paths of its Ingress answer 503.
//   - No host gets the certificate of another host, or of a namespace without an Ingress that routes the host.
package ingress
