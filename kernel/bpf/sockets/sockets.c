//go:build ignore

// Translation of Services at the socket: package sockets describes it. License: see LICENSE of the repository.
//
// Addresses of both families are 16 bytes in network byte order, IPv4 as ::ffff:a.b.c.d. Ports are in network byte
// order in the low 16 bits of a word, as the kernel passes them.

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/socket.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define PROCEED 1
#define STREAM 1   // SOCK_STREAM
#define DATAGRAM 2 // SOCK_DGRAM

// FLOWS bounds the VIPs of one unconnected UDP socket. nftables translates datagrams to further ones.
#define FLOWS 8

struct address {
	__u32 word[4];
};

struct frontend_key {
	struct address addr;
	__u32 port;
	__u32 protocol;
};

// frontend leads to the slots of one generation.
struct frontend {
	__u32 generation;
	__u32 slots;
	__u32 flags;
};

// PODS_ONLY excludes processes of the node.
#define PODS_ONLY 1

struct slot_key {
	__u32 generation;
	__u32 number;
};

struct backend {
	struct address addr;
	__u32 port;
};

// member_key is a backend of a UDP frontend.
struct member_key {
	__u32 generation;
	struct backend backend;
};

struct pod_key {
	__u32 bits;
	struct address addr;
};

struct node {
	__u64 host;  // cookie of the network namespace of the node
	__u64 flags; // TRANSLATE_HOST
};

#define TRANSLATE_HOST 1

// origin is where a connected socket was connected to, and where it was led.
struct origin {
	struct backend vip;
	struct backend backend;
};

struct flows {
	struct bpf_spin_lock lock;
	struct origin flow[FLOWS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} frontends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288);
	__type(key, struct slot_key);
	__type(value, struct backend);
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct member_key);
	__type(value, __u32);
} members SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct pod_key);
	__type(value, __u32);
} pods SEC(".maps");

// namespaces are the network namespaces of pods, by their cookies, which the kernel never uses again.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u32);
} namespaces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct node);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct origin);
} connected SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct flows);
} datagrams SEC(".maps");

static __always_inline struct address mapped(__u32 v4)
{
	struct address a = {{0, 0, bpf_htonl(0xffff), v4}};
	return a;
}

static __always_inline int same(const struct backend *a, const struct backend *b)
{
	return a->addr.word[3] == b->addr.word[3] && a->port == b->port && a->addr.word[0] == b->addr.word[0] &&
	       a->addr.word[1] == b->addr.word[1] && a->addr.word[2] == b->addr.word[2];
}

// served returns the frontend of a destination, if this socket may be translated.
static __always_inline struct frontend *served(struct bpf_sock_addr *ctx, const struct backend *to, __u32 protocol)
{
	struct frontend_key key = {.addr = to->addr, .port = to->port, .protocol = protocol};
	struct frontend *f = bpf_map_lookup_elem(&frontends, &key);
	__u32 zero = 0;
	__u64 cookie;
	struct node *n;

	if (!f)
		return 0;
	n = bpf_map_lookup_elem(&nodes, &zero);
	if (!n)
		return 0;
	cookie = bpf_get_netns_cookie(ctx);
	if (n->host == cookie)
		return (n->flags & TRANSLATE_HOST) && !(f->flags & PODS_ONLY) ? f : 0;
	return bpf_map_lookup_elem(&namespaces, &cookie) ? f : 0;
}

// choose returns a random slot of a frontend.
static __always_inline struct backend *choose(const struct frontend *f)
{
	struct slot_key key = {.generation = f->generation};

	if (f->slots == 0)
		return 0;
	key.number = bpf_get_prandom_u32() % f->slots;
	return bpf_map_lookup_elem(&slots, &key);
}

// connect_stream decides where a TCP socket connects to; 0: unchanged. A socket that is bound to a port stays with
// nftables: two VIPs may have the same backend, and the kernel refuses a second connection with equal addresses and
// ports, while connection tracking changes the source port.
static __always_inline int connect_stream(struct bpf_sock_addr *ctx, struct backend *to)
{
	struct bpf_sock *sk = ctx->sk;
	struct frontend *f;
	struct backend *b;
	struct origin *o;

	if (!sk)
		return 0;
	f = served(ctx, to, IPPROTO_TCP);
	b = f && sk->src_port == 0 ? choose(f) : 0;
	if (b)
		o = bpf_sk_storage_get(&connected, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!b || !o) {
		bpf_sk_storage_delete(&connected, sk);
		return 0;
	}
	o->vip = *to;
	o->backend = *b;
	*to = o->backend;
	return 1;
}

// send decides where a datagram of an unconnected socket goes; 0: unchanged. The socket stays with its backend as long
// as that serves the frontend. Answers are told apart by the backend, so one backend has one VIP for a socket.
static __always_inline int send(struct bpf_sock_addr *ctx, struct backend *to)
{
	struct bpf_sock *sk = ctx->sk;
	struct member_key member = {};
	struct backend chosen = {};
	struct flows *all;
	struct frontend *f;
	struct backend *b;
	int i, at = -1, taken = 0;

	if (!sk)
		return 0;
	f = served(ctx, to, IPPROTO_UDP);
	all = bpf_sk_storage_get(&datagrams, sk, 0, f ? BPF_SK_STORAGE_GET_F_CREATE : 0);
	if (!all)
		return 0;
	if (!f) { // answers of a backend that the process itself names are its own
		bpf_spin_lock(&all->lock);
		for (i = 0; i < FLOWS; i++)
			if (same(&all->flow[i].backend, to) || same(&all->flow[i].vip, to))
				__builtin_memset(&all->flow[i], 0, sizeof(all->flow[i]));
		bpf_spin_unlock(&all->lock);
		return 0;
	}
	bpf_spin_lock(&all->lock);
	for (i = 0; i < FLOWS; i++)
		if (same(&all->flow[i].vip, to))
			chosen = all->flow[i].backend, at = i;
	bpf_spin_unlock(&all->lock);
	if (at >= 0) {
		member.generation = f->generation;
		member.backend = chosen;
		if (bpf_map_lookup_elem(&members, &member)) {
			*to = chosen;
			return 1;
		}
	}
	b = choose(f);
	if (!b)
		return 0;
	chosen = *b;
	at = -1;
	bpf_spin_lock(&all->lock);
	for (i = 0; i < FLOWS; i++) {
		if (same(&all->flow[i].vip, to))
			__builtin_memset(&all->flow[i], 0, sizeof(all->flow[i]));
		if (same(&all->flow[i].backend, &chosen))
			taken = 1;
	}
	for (i = 0; i < FLOWS; i++)
		if (!taken && at < 0 && all->flow[i].vip.port == 0) {
			all->flow[i].vip = *to;
			all->flow[i].backend = chosen;
			at = i;
		}
	bpf_spin_unlock(&all->lock);
	if (at >= 0)
		*to = chosen;
	return at >= 0;
}

// receive names the VIP as the source of an answer; 0: unchanged.
static __always_inline int receive(struct bpf_sock_addr *ctx, struct backend *from)
{
	struct bpf_sock *sk = ctx->sk;
	struct backend vip = {};
	struct flows *all;
	int i, found = 0;

	if (!sk)
		return 0;
	all = bpf_sk_storage_get(&datagrams, sk, 0, 0);
	if (!all)
		return 0;
	bpf_spin_lock(&all->lock);
	for (i = 0; i < FLOWS; i++)
		if (same(&all->flow[i].backend, from))
			vip = all->flow[i].vip, found = 1;
	bpf_spin_unlock(&all->lock);
	if (found)
		*from = vip;
	return found;
}

// peer names the VIP as the peer of a connected socket; 0: unchanged.
static __always_inline int peer(struct bpf_sock_addr *ctx, struct backend *at)
{
	struct bpf_sock *sk = ctx->sk;
	struct origin *o;

	if (!sk)
		return 0;
	o = bpf_sk_storage_get(&connected, sk, 0, 0);
	if (!o || !same(&o->backend, at))
		return 0;
	*at = o->vip;
	return 1;
}

static __always_inline void read4(struct bpf_sock_addr *ctx, struct backend *b)
{
	b->addr = mapped(ctx->user_ip4);
	b->port = ctx->user_port;
}

static __always_inline void write4(struct bpf_sock_addr *ctx, const struct backend *b)
{
	ctx->user_ip4 = b->addr.word[3];
	ctx->user_port = b->port;
}

static __always_inline void read6(struct bpf_sock_addr *ctx, struct backend *b)
{
	b->addr.word[0] = ctx->user_ip6[0];
	b->addr.word[1] = ctx->user_ip6[1];
	b->addr.word[2] = ctx->user_ip6[2];
	b->addr.word[3] = ctx->user_ip6[3];
	b->port = ctx->user_port;
}

static __always_inline void write6(struct bpf_sock_addr *ctx, const struct backend *b)
{
	ctx->user_ip6[0] = b->addr.word[0];
	ctx->user_ip6[1] = b->addr.word[1];
	ctx->user_ip6[2] = b->addr.word[2];
	ctx->user_ip6[3] = b->addr.word[3];
	ctx->user_port = b->port;
}

// forget ends the flows of a UDP socket that is connected: nftables translates what it sends.
static __always_inline void forget(struct bpf_sock_addr *ctx)
{
	if (ctx->sk && ctx->type == DATAGRAM)
		bpf_sk_storage_delete(&datagrams, ctx->sk);
}

#define HOOK(name, section, family, action)                                                                            \
	SEC(section) int name(struct bpf_sock_addr *ctx)                                                               \
	{                                                                                                              \
		struct backend at = {};                                                                                \
		read##family(ctx, &at);                                                                                \
		action(family);                                                                                        \
		return PROCEED;                                                                                        \
	}

#define CONNECT(family)                                                                                                \
	if (ctx->protocol != IPPROTO_TCP)                                                                              \
		forget(ctx);                                                                                           \
	else if (connect_stream(ctx, &at))                                                                             \
	write##family(ctx, &at)

#define SEND(family)                                                                                                   \
	if (ctx->protocol == IPPROTO_UDP && send(ctx, &at))                                                            \
	write##family(ctx, &at)

#define RECEIVE(family)                                                                                                \
	if (ctx->protocol == IPPROTO_UDP && receive(ctx, &at))                                                         \
	write##family(ctx, &at)

#define PEER(family)                                                                                                   \
	if (ctx->protocol == IPPROTO_TCP && peer(ctx, &at))                                                            \
	write##family(ctx, &at)

HOOK(wl_connect4, "cgroup/connect4", 4, CONNECT)
HOOK(wl_connect6, "cgroup/connect6", 6, CONNECT)
HOOK(wl_sendmsg4, "cgroup/sendmsg4", 4, SEND)
HOOK(wl_sendmsg6, "cgroup/sendmsg6", 6, SEND)
HOOK(wl_recvmsg4, "cgroup/recvmsg4", 4, RECEIVE)
HOOK(wl_recvmsg6, "cgroup/recvmsg6", 6, RECEIVE)
HOOK(wl_peer4, "cgroup/getpeername4", 4, PEER)
HOOK(wl_peer6, "cgroup/getpeername6", 6, PEER)

// wl_learn notes the namespace of a pod: one from which a connection starts with a pod's address of this node.
SEC("sockops") int wl_learn(struct bpf_sock_ops *ops)
{
	struct pod_key key = {.bits = 128};
	__u32 one = 1, zero = 0;
	struct node *n;
	__u64 cookie;

	if (ops->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
		return PROCEED;
	cookie = bpf_get_netns_cookie(ops);
	if (bpf_map_lookup_elem(&namespaces, &cookie))
		return PROCEED;
	// A bridge of pods gives the node an address in their network.
	n = bpf_map_lookup_elem(&nodes, &zero);
	if (!n || n->host == cookie)
		return PROCEED;
	if (ops->family == 2 /* AF_INET */) {
		key.addr = mapped(ops->local_ip4);
		// The compiler would merge the loads of both branches into one at a computed offset of the context, which the
		// verifier refuses.
		asm volatile("" ::: "memory");
	} else {
		key.addr.word[0] = ops->local_ip6[0];
		key.addr.word[1] = ops->local_ip6[1];
		key.addr.word[2] = ops->local_ip6[2];
		key.addr.word[3] = ops->local_ip6[3];
	}
	if (bpf_map_lookup_elem(&pods, &key))
		bpf_map_update_elem(&namespaces, &cookie, &one, BPF_ANY);
	return PROCEED;
}

char _license[] SEC("license") = "Apache-2.0";
