//go:build ignore

// Redirection of packets of connections of pods: package fastpath describes it. License: see LICENSE of the
// repository; the kernel gets "Dual BSD/GPL", since functions of connection tracking are for GPL programs only.
//
// Addresses of both families are 16 bytes in network byte order, IPv4 as ::ffff:a.b.c.d.

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define STACK TC_ACT_UNSPEC // TCX_NEXT: other programs, then the network stack
#define AF_INET 2
#define AF_INET6 10

// CHECK is how long a flow is used before connection tracking is asked again, in ns.
#define CHECK 100000000ull

// A pair of addresses is used for ALLOWED ns after a SYN that the stack accepted. Half of that later, another SYN asks the
// stack again. A SYN has the time ASKING to become an established connection; then the next one may ask.
#define ALLOWED 500000000ull
#define ASKING 200000000ull

// Bits of nf_conn.status (include/uapi/linux/netfilter/nf_conntrack_common.h).
#define SEEN_REPLY (1 << 1)
#define ASSURED (1 << 2)
#define CONFIRMED (1 << 3)
#define NAT (3 << 4)
#define SEQ_ADJUST (1 << 6)
#define DYING (1 << 9)
#define TEMPLATE (1 << 11)
#define UNTRACKED (1 << 12)
#define HELPER (1 << 13)
#define EXCLUDED (NAT | SEQ_ADJUST | DYING | TEMPLATE | UNTRACKED | HELPER)

// States of a connection (enum tcp_conntrack). The stack gives each connection of its own another one than NONE.
#define TCP_NONE 0
#define TCP_SYN_SENT 1
#define TCP_SYN_RECV 2
#define TCP_ESTABLISHED 3
#define TCP_SYN_SENT2 9

#define DIRECTION_REPLY 1 // IP_CT_DIR_REPLY

// The kernel's types, with the fields that are read; the loader finds their places.
struct ip_ct_tcp {
	__u8 state;
} __attribute__((preserve_access_index));

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} __attribute__((preserve_access_index));

struct nf_conn {
	unsigned long status;
	__u32 mark;
	union nf_conntrack_proto proto;
} __attribute__((preserve_access_index));

// nf_conn___init is a connection that is not in the table yet.
struct nf_conn___init {
	struct nf_conn ct;
};

// bpf_ct_opts has its first 12 bytes in each kernel (net/netfilter/nf_conntrack_bpf.c).
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					 struct bpf_ct_opts *opts, __u32 opts_size) __ksym;
extern struct nf_conn___init *bpf_skb_ct_alloc(struct __sk_buff *skb, struct bpf_sock_tuple *tuple, __u32 tuple_size,
					      struct bpf_ct_opts *opts, __u32 opts_size) __ksym;
extern struct nf_conn *bpf_ct_insert_entry(struct nf_conn___init *ct) __ksym;
extern void bpf_ct_set_timeout(struct nf_conn___init *ct, __u32 milliseconds) __ksym;
extern int bpf_ct_change_timeout(struct nf_conn *ct, __u32 milliseconds) __ksym;
extern int bpf_ct_change_status(struct nf_conn *ct, __u32 status) __ksym;
extern void bpf_ct_release(struct nf_conn *ct) __ksym;

struct address {
	__u32 word[4];
};

// pod is a pod of this node that may be reached by redirection.
struct pod {
	__u32 link; // the node's end
	__u32 mtu;
	__u8 macs[12]; // of the pod, of the node's end
};

struct flow_key {
	__u32 link; // where packets arrive
	struct address src, dst;
	__u16 sport, dport;
	__u32 protocol;
};

// Ways of a flow.
#define WAY_STACK 0
#define WAY_PEER 1
#define WAY_NEIGHBOUR 2

struct flow {
	__u64 checked; // ns
	__u32 link;    // where packets go
	__u32 mtu;
	__u8 macs[12];
	__u32 way;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 8192);
	__type(key, struct address);
	__type(value, struct pod);
} pods SEC(".maps");

// uplinks are links, other than those of pods, from and to which packets are redirected.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} uplinks SEC(".maps");

// flows is a cache of answers of connection tracking: an entry that is lost is made again.
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

// pair_key are connections over TCP to one port of one address from another one.
struct pair_key {
	struct address src, dst;
	__u32 link; // where the SYN arrives
	__u32 dport;
} __attribute__((aligned(8)));

// pair is what the stack decided about such connections.
struct pair {
	struct bpf_spin_lock lock;
	__u32 sport; // of the SYN that asks the stack
	__u64 asked, asked_at;     // in which generation, and when (ns)
	__u64 allowed, allowed_at; // in which generation was the SYN that the stack accepted, and when (ns)
	struct pair_key key;
};

#define PAIRS 16384

// pairs is a cache with one place for each hash. Its entries stay in place, so that a lock guards what is read: an entry of
// a hash map may become that of another key meanwhile.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PAIRS);
	__type(key, __u32);
	__type(value, struct pair);
} pairs SEC(".maps");

// generation is raised with each change of rules, pods and links: what the stack decided before is used no more. 0 sends
// each new connection to the stack.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} generation SEC(".maps");

// seed of the hash of pairs: nobody else knows which pairs meet.
volatile const __u32 seed = 0;

// Timeouts of connections in ms.
#define TIMEOUT_TCP_ESTABLISHED 0
#define TIMEOUT_UDP_STREAM 1
#define TIMEOUT_TCP_SYN_SENT 2
#define TIMEOUT_TCP_SYN_RECV 3
#define TIMEOUT_TCP_CLOSE 4

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u32);
} timeouts SEC(".maps");

// redirected counts packets by way. Two more count connections that began by redirection, and answers that were dropped.
#define BEGUN 3
#define DROPPED 4
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 5);
	__type(key, __u32);
	__type(value, __u64);
} redirected SEC(".maps");

// packet is what was read of a packet.
struct packet {
	struct flow_key key;
	bool is6;
	bool syn, ack, fin, rst;
	bool is_bare;  // TCP without data
	bool from_pod; // of this node, at whose link it arrived
	__u32 headers; // bytes before the data, without the link's
	__u32 bytes;   // of the network packet, as its header says
};

static __always_inline bool read_tcp(struct packet *p, struct tcphdr *tcp, void *end)
{
	if ((void *)(tcp + 1) > end)
		return false;
	p->key.sport = tcp->source;
	p->key.dport = tcp->dest;
	p->syn = tcp->syn;
	p->ack = tcp->ack;
	p->fin = tcp->fin;
	p->rst = tcp->rst;
	p->headers += tcp->doff * 4;
	p->is_bare = p->bytes == p->headers;
	return true;
}

static __always_inline bool read_udp(struct packet *p, struct udphdr *udp, void *end)
{
	if ((void *)(udp + 1) > end)
		return false;
	p->key.sport = udp->source;
	p->key.dport = udp->dest;
	p->headers += sizeof(*udp);
	return true;
}

// read_packet returns false for a packet that is left to the stack.
static __always_inline bool read_packet(struct __sk_buff *skb, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end, *next;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > end || skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return false;
	p->key.link = skb->ifindex;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->ttl <= 1 ||
		    ip->frag_off & bpf_htons(0x3fff))
			return false;
		p->key.src.word[2] = p->key.dst.word[2] = bpf_htonl(0xffff);
		p->key.src.word[3] = ip->saddr;
		p->key.dst.word[3] = ip->daddr;
		p->key.protocol = ip->protocol;
		p->bytes = bpf_ntohs(ip->tot_len);
		p->headers = sizeof(*ip);
		next = ip + 1;
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > end || ip->version != 6 || ip->hop_limit <= 1)
			return false;
		__builtin_memcpy(&p->key.src, &ip->saddr, 16);
		__builtin_memcpy(&p->key.dst, &ip->daddr, 16);
		p->is6 = true;
		p->key.protocol = ip->nexthdr;
		p->bytes = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		p->headers = sizeof(*ip);
		next = ip + 1;
	} else {
		return false;
	}
	if (p->key.protocol == IPPROTO_TCP)
		return read_tcp(p, next, end);
	if (p->key.protocol == IPPROTO_UDP)
		return read_udp(p, next, end);
	return false;
}

// fits reports whether no packet, or no segment of a large one, exceeds the MTU.
static __always_inline bool fits(struct __sk_buff *skb, struct packet *p, __u32 mtu)
{
	if (skb->gso_size)
		return skb->gso_size + p->headers <= mtu;
	return skb->len - ETH_HLEN <= mtu;
}

// Answers of connection tracking.
#define UNDECIDED 0 // no connection, or one that is being established
#define REFUSED 1   // the stack must have each packet
#define ACCEPTED 2

// fill returns the size of the tuple.
static __always_inline __u32 fill(struct packet *p, struct bpf_sock_tuple *tuple, struct bpf_ct_opts *opts)
{
	opts->netns_id = BPF_F_CURRENT_NETNS;
	opts->l4proto = p->key.protocol;
	if (p->is6) {
		__builtin_memcpy(tuple->ipv6.saddr, &p->key.src, 16);
		__builtin_memcpy(tuple->ipv6.daddr, &p->key.dst, 16);
		tuple->ipv6.sport = p->key.sport;
		tuple->ipv6.dport = p->key.dport;
		return sizeof(tuple->ipv6);
	}
	tuple->ipv4.saddr = p->key.src.word[3];
	tuple->ipv4.daddr = p->key.dst.word[3];
	tuple->ipv4.sport = p->key.sport;
	tuple->ipv4.dport = p->key.dport;
	return sizeof(tuple->ipv4);
}

// lookup returns a packet's connection. The caller releases it.
static __always_inline struct nf_conn *lookup(struct __sk_buff *skb, struct packet *p, struct bpf_sock_tuple *tuple,
					      struct bpf_ct_opts *opts)
{
	return bpf_skb_ct_lookup(skb, tuple, fill(p, tuple, opts), opts, sizeof(*opts));
}

// expire_in sets a connection's timeout.
static __always_inline void expire_in(struct nf_conn *ct, __u32 which)
{
	__u32 *timeout = bpf_map_lookup_elem(&timeouts, &which);

	if (timeout && *timeout)
		bpf_ct_change_timeout(ct, *timeout);
}

static __always_inline __u64 current_generation(void)
{
	__u32 zero = 0;
	__u64 *g = bpf_map_lookup_elem(&generation, &zero);

	return g ? *(volatile __u64 *)g : 0;
}

static __always_inline struct pair *pair_of(struct pair_key *key)
{
	__u32 *word = (__u32 *)key, hash = seed;

	for (int i = 0; i < sizeof(*key) / 4; i++) {
		hash = (hash ^ word[i]) * 0x9e3779b1;
		hash ^= hash >> 15;
	}
	hash %= PAIRS;
	return bpf_map_lookup_elem(&pairs, &hash);
}

static __always_inline bool is_same(const struct pair_key *a, const struct pair_key *b)
{
	const __u64 *x = (void *)a, *y = (void *)b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]) | (x[4] ^ y[4]));
}

static __always_inline struct pair_key pair_key_of(struct packet *p)
{
	struct pair_key key = {.src = p->key.src, .dst = p->key.dst, .link = p->key.link, .dport = p->key.dport};

	return key;
}

// learn notes that the stack accepted the SYN of a connection, if that one asked in this generation.
static __always_inline void learn(struct packet *p, __u64 now)
{
	struct pair_key key = pair_key_of(p);
	struct pair *pair = pair_of(&key);
	__u64 current = current_generation();

	if (!pair || !current)
		return;
	bpf_spin_lock(&pair->lock);
	if (is_same(&pair->key, &key) && pair->asked == current && pair->sport == p->key.sport) {
		pair->allowed = current;
		pair->allowed_at = pair->asked_at;
		pair->asked = 0;
	}
	bpf_spin_unlock(&pair->lock);
}

// ask asks connection tracking about a packet, and has it keep the connection if the answer is ACCEPTED.
static __always_inline int ask(struct __sk_buff *skb, struct packet *p, __u64 now)
{
	bool tcp = p->key.protocol == IPPROTO_TCP;
	__u32 wanted = CONFIRMED | SEEN_REPLY;
	struct bpf_sock_tuple tuple = {};
	struct bpf_ct_opts opts = {};
	int answer = ACCEPTED;
	struct nf_conn *ct;
	__u32 status;
	__u8 state;

	ct = lookup(skb, p, &tuple, &opts);
	if (!ct)
		return UNDECIDED;
	status = ct->status;
	state = ct->proto.tcp.state;
	if (status & EXCLUDED || ct->mark)
		answer = REFUSED;
	else if ((status & wanted) != wanted)
		answer = UNDECIDED;
	else if (tcp && (state < TCP_ESTABLISHED || state == TCP_SYN_SENT2))
		answer = UNDECIDED;
	else if (tcp && state != TCP_ESTABLISHED)
		answer = REFUSED;
	if (answer == ACCEPTED) {
		// The stack has not seen the answer to a SYN that was redirected.
		if (tcp && !(status & ASSURED))
			bpf_ct_change_status(ct, status | ASSURED);
		expire_in(ct, tcp ? TIMEOUT_TCP_ESTABLISHED : TIMEOUT_UDP_STREAM);
		if (tcp && opts.dir != DIRECTION_REPLY)
			learn(p, now);
	}
	bpf_ct_release(ct);
	return answer;
}

// find_way fills in where packets of a flow go; false leaves them to the stack.
static __always_inline bool find_way(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	struct pod *from = bpf_map_lookup_elem(&pods, &p->key.src), *to;
	struct bpf_fib_lookup fib = {};
	__u32 link = p->key.link;

	// A pod sends from its own addresses, and an uplink brings no packets of this node's pods.
	if (from ? from->link != link : !bpf_map_lookup_elem(&uplinks, &link))
		return false;
	p->from_pod = from;
	to = bpf_map_lookup_elem(&pods, &p->key.dst);
	if (to) {
		f->way = WAY_PEER;
		f->link = to->link;
		f->mtu = to->mtu;
		__builtin_memcpy(f->macs, to->macs, sizeof(f->macs));
		return to->link != link;
	}
	if (!from)
		return false;
	fib.family = p->is6 ? AF_INET6 : AF_INET;
	fib.l4_protocol = p->key.protocol;
	fib.sport = p->key.sport;
	fib.dport = p->key.dport;
	fib.tot_len = 1; // has the MTU of the route returned
	fib.ifindex = link;
	if (p->is6) {
		__builtin_memcpy(fib.ipv6_src, &p->key.src, 16);
		__builtin_memcpy(fib.ipv6_dst, &p->key.dst, 16);
	} else {
		fib.ipv4_src = p->key.src.word[3];
		fib.ipv4_dst = p->key.dst.word[3];
	}
	if (bpf_fib_lookup(skb, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	f->way = WAY_NEIGHBOUR;
	f->link = fib.ifindex;
	f->mtu = fib.mtu_result;
	return bpf_map_lookup_elem(&uplinks, &f->link) != NULL;
}

// forget removes a flow and the answers to it, whose end connection tracking sees.
static __always_inline void forget(struct packet *p, struct flow *f)
{
	struct flow_key back = {.link = f->link, .src = p->key.dst, .dst = p->key.src, .sport = p->key.dport,
				.dport = p->key.sport, .protocol = p->key.protocol};

	bpf_map_delete_elem(&flows, &p->key);
	bpf_map_delete_elem(&flows, &back);
}

// hop counts the packet's passage of the node, as the stack does.
static __always_inline bool hop(struct __sk_buff *skb, bool is6, const __u8 *macs)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	__u8 limit;

	if (!is6) {
		struct iphdr *ip = (void *)(eth + 1);
		__u32 sum;

		if ((void *)(ip + 1) > end)
			return false;
		if (macs)
			__builtin_memcpy(eth, macs, 12);
		ip->ttl--;
		sum = ip->check + bpf_htons(0x0100);
		ip->check = sum + (sum >= 0xffff);
		return true;
	}
	struct ipv6hdr *ip = (void *)(eth + 1);

	if ((void *)(ip + 1) > end)
		return false;
	if (macs)
		__builtin_memcpy(eth, macs, 12);
	limit = ip->hop_limit - 1;
	return bpf_skb_store_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, hop_limit), &limit, 1,
				   BPF_F_RECOMPUTE_CSUM) == 0;
}

static __always_inline void count(__u32 what)
{
	__u64 *n = bpf_map_lookup_elem(&redirected, &what);

	if (n)
		++*n;
}

// go sends a packet on its way.
static __always_inline int go(struct __sk_buff *skb, struct packet *p, struct flow *f)
{
	__u32 way = f->way, link = f->link;

	if (way == WAY_STACK || !fits(skb, p, f->mtu))
		return STACK;
	count(way);
	if (way == WAY_PEER)
		return hop(skb, p->is6, f->macs) ? bpf_redirect_peer(link, 0) : STACK;
	return hop(skb, p->is6, NULL) ? bpf_redirect_neigh(link, NULL, 0, 0) : STACK;
}

// is_allowed reports whether the stack accepted a SYN like this one lately, under the rules that hold. If not, or if that
// is about to be too long ago, this SYN asks the stack, unless another one does.
static __always_inline bool is_allowed(struct __sk_buff *skb, struct packet *p, __u64 now)
{
	__u64 current = current_generation();
	struct pair_key key = pair_key_of(p);
	struct bpf_sock_tuple tuple = {};
	bool allowed, asks, is_ours;
	struct bpf_ct_opts opts = {};
	struct pair *pair;
	struct nf_conn *ct;

	if (!current)
		return false;
	pair = pair_of(&key);
	if (!pair)
		return false;
	bpf_spin_lock(&pair->lock);
	is_ours = is_same(&pair->key, &key);
	allowed = is_ours && pair->allowed == current && now - pair->allowed_at < ALLOWED;
	asks = !(allowed && now - pair->allowed_at < ALLOWED / 2) &&
	       !(is_ours && pair->asked == current && now - pair->asked_at < ASKING);
	bpf_spin_unlock(&pair->lock);
	if (!asks)
		return allowed;
	// A SYN of a connection that exists tells nothing of the rules that hold.
	ct = lookup(skb, p, &tuple, &opts);
	if (ct) {
		bpf_ct_release(ct);
		return false;
	}
	bpf_spin_lock(&pair->lock);
	if (!is_same(&pair->key, &key)) {
		pair->key = key;
		pair->allowed = 0;
	}
	pair->sport = p->key.sport;
	pair->asked = current;
	pair->asked_at = now;
	bpf_spin_unlock(&pair->lock);
	return false;
}

// begin redirects a SYN like those that the stack accepted lately, and has connection tracking know the connection.
static __always_inline int begin(struct __sk_buff *skb, struct packet *p, __u64 now)
{
	__u32 which = TIMEOUT_TCP_SYN_SENT, *timeout;
	struct bpf_sock_tuple tuple = {};
	struct bpf_ct_opts opts = {};
	struct nf_conn___init *fresh;
	struct flow f = {};
	struct nf_conn *ct;

	// Data in a SYN may be answered before the third packet, which the stack must see first.
	if (!p->is_bare || !find_way(skb, p, &f) || !fits(skb, p, f.mtu) || !is_allowed(skb, p, now))
		return STACK;
	timeout = bpf_map_lookup_elem(&timeouts, &which);
	if (!timeout || !*timeout)
		return STACK;
	fresh = bpf_skb_ct_alloc(skb, &tuple, fill(p, &tuple, &opts), &opts, sizeof(opts));
	if (!fresh)
		return STACK;
	bpf_ct_set_timeout(fresh, *timeout);
	// It fails if there is a connection with one of these tuples.
	ct = bpf_ct_insert_entry(fresh);
	if (!ct)
		return STACK;
	bpf_ct_release(ct);
	count(BEGUN);
	return go(skb, p, &f);
}

// Packets that answer a SYN or end a connection.
#define TO_STACK 0
#define TO_WAY 1
#define TO_DROP 2

// meet decides about a SYN-ACK or RST. Connection tracking has no state of a connection whose SYN was redirected, until it
// sees the third packet: to the stack, an answer before is invalid.
static __always_inline int meet(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_ct_opts opts = {};
	int decision = TO_STACK;
	struct nf_conn *ct;
	__u32 status;

	ct = lookup(skb, p, &tuple, &opts);
	if (!ct)
		return TO_STACK;
	status = ct->status;
	if (status & EXCLUDED || !(status & CONFIRMED)) {
		decision = TO_STACK;
	} else if (ct->proto.tcp.state == TCP_NONE && ct->mark) {
		// Policy forbids it by now. The client's next SYN meets the rules, which drop and count it.
		decision = TO_DROP;
	} else if (ct->proto.tcp.state == TCP_NONE && p->rst) {
		expire_in(ct, TIMEOUT_TCP_CLOSE);
		decision = TO_WAY;
	} else if (ct->proto.tcp.state == TCP_NONE && opts.dir == DIRECTION_REPLY) {
		bpf_ct_change_status(ct, status | SEEN_REPLY);
		expire_in(ct, TIMEOUT_TCP_SYN_RECV);
		decision = TO_WAY;
	} else if (p->rst && p->from_pod && ct->proto.tcp.state == TCP_ESTABLISHED && status & SEEN_REPLY && !ct->mark) {
		// The entry stays for a while as the stack's would: without it, a packet of the connection could begin it anew.
		expire_in(ct, TIMEOUT_TCP_CLOSE);
		decision = TO_WAY;
	}
	bpf_ct_release(ct);
	return decision;
}

// finish is for SYN-ACK and RST.
static __always_inline int finish(struct __sk_buff *skb, struct packet *p)
{
	struct flow f = {};
	int decision;

	if (!find_way(skb, p, &f) || !fits(skb, p, f.mtu))
		return STACK;
	decision = meet(skb, p);
	if (decision == TO_DROP) {
		count(DROPPED);
		return TC_ACT_SHOT;
	}
	return decision == TO_WAY ? go(skb, p, &f) : STACK;
}

SEC("tc")
int wl_fastpath(struct __sk_buff *skb)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct packet p = {};
	struct flow *f, fresh = {};

	if (!read_packet(skb, &p))
		return STACK;
	f = bpf_map_lookup_elem(&flows, &p.key);
	if (p.syn || p.fin || p.rst) {
		if (f)
			forget(&p, f);
		if (p.fin || (p.syn && p.rst))
			return STACK;
		return p.syn && !p.ack ? begin(skb, &p, now) : finish(skb, &p);
	}
	if (!f || now - f->checked > CHECK) {
		int said = UNDECIDED;

		fresh.checked = now;
		if (find_way(skb, &p, &fresh))
			said = ask(skb, &p, now);
		else if (!f)
			return STACK;
		if (said == UNDECIDED) {
			if (f)
				bpf_map_delete_elem(&flows, &p.key);
			return STACK;
		}
		if (said == REFUSED)
			fresh.way = WAY_STACK;
		bpf_map_update_elem(&flows, &p.key, &fresh, BPF_ANY);
		// An acknowledgement tells connection tracking how far the connection is.
		if (p.is_bare && f)
			return STACK;
		f = &fresh;
	}
	return go(skb, &p, f);
}

char _license[] SEC("license") = "Dual BSD/GPL";
