package demo

// A client pod on every node, the echo server of the loss meter, and the meter. The latter two may have large buffers
// (NET_ADMIN), so that packets that wait on a busy machine do not count as lost.
const clientYAML = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: client, image: "%s", args: [netexec, --http-port=8080], imagePullPolicy: IfNotPresent}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 3
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: echo
        image: wayleave.dev/lossmeter:dev
        command: [/lossmeter, serve, ":7"]
        imagePullPolicy: IfNotPresent
        # What measures must not wait for the CPU while agents start.
        resources: {requests: {cpu: 300m}}
        securityContext: {capabilities: {add: [NET_ADMIN]}}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports:
  - {name: tcp, port: 7, protocol: TCP}
  - {name: udp, port: 7, protocol: UDP}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: meter}
spec:
  selector: {matchLabels: {app: meter}}
  template:
    metadata: {labels: {app: meter}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: meter
        image: wayleave.dev/lossmeter:dev
        command: [/lossmeter, serve, ":7"]
        imagePullPolicy: IfNotPresent
        # What measures must not wait for the CPU while agents start.
        resources: {requests: {cpu: 300m}}
        securityContext: {capabilities: {add: [NET_ADMIN]}}
`

const emptyYAML = `
apiVersion: v1
kind: Service
metadata: {name: empty}
spec:
  selector: {app: nobody}
  ports: [{port: 80}]
`

const frontendYAML = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: frontend}
spec:
  replicas: 1
  selector: {matchLabels: {app: frontend}}
  template:
    metadata: {labels: {app: frontend}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: frontend, image: "%s", args: [netexec, --http-port=8080], imagePullPolicy: IfNotPresent}
---
apiVersion: v1
kind: Service
metadata: {name: frontend}
spec:
  type: NodePort
  selector: {app: frontend}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

const headlessYAML = `
apiVersion: v1
kind: Service
metadata: {name: cassandra}
spec:
  clusterIP: None
  selector: {app: backend}
  ports: [{port: 9042}]
`

const mysqlYAML = `
apiVersion: v1
kind: Service
metadata: {name: mysql}
spec:
  clusterIP: None
  selector: {app: mysql}
  ports: [{port: 3306}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: mysql}
spec:
  serviceName: mysql
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: mysql}}
  template:
    metadata: {labels: {app: mysql}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: mysql, image: "%s", args: [pause], imagePullPolicy: IfNotPresent}
`

const externalYAML = `
apiVersion: v1
kind: Service
metadata: {name: external-db}
spec:
  type: ExternalName
  externalName: db.example.com
`

const ndotsYAML = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 0
  dnsConfig: {%s}
  containers:
  - {name: client, image: "%s", args: [pause], imagePullPolicy: IfNotPresent}
`

// A slice whose port has no number: the API allows it ("all ports"), and a proxy cannot use it.
const badSliceYAML = `
apiVersion: v1
kind: Service
metadata: {name: broken, labels: {demo: broken}}
spec:
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: broken-1, labels: {demo: broken, kubernetes.io/service-name: broken}}
addressType: IPv4
ports: [{protocol: TCP}]
endpoints: [{addresses: [10.244.0.250]}]
`
