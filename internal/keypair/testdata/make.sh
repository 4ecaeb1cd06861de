#!/bin/sh
# Makes the certificates of this directory that Go cannot make, by OpenSSL 3: NAME.crt and NAME.key. They are valid for
# one hundred years, for odd.example.
set -eu
cd "$(dirname "$0")"
days=36500
names="subjectAltName=DNS:odd.example"
# self NAME OPTIONS-OF-REQ... signs NAME.key by itself.
self() {
	name=$1; shift
	openssl req -x509 -new -key "$name.key" -subj /CN=odd.example -days $days -addext "$names" -out "$name.crt" "$@" 2>/dev/null
}
openssl genrsa -traditional -out rsa512.key 512 2>/dev/null; self rsa512 -sha256
openssl genrsa -out rsa1024.key 1024 2>/dev/null; self rsa1024
openssl genrsa -out rsa4096.key 4096 2>/dev/null; self rsa4096
openssl genrsa -primes 5 -out rsa8200.key 8200 2>/dev/null; self rsa8200
openssl genrsa -traditional -out sha1.key 2048 2>/dev/null; self sha1 -sha1
cp sha1.key md5.key; self md5 -md5
cp sha1.key negative.key; self negative -set_serial -5
cp sha1.key zero.key; self zero -set_serial 0
cp sha1.key serial.key; self serial -set_serial 0x7f112233445566778899aabbccddeeff00112233445566778899aabbccdd
openssl ecparam -name prime256v1 -genkey -out parameters.key; self parameters
openssl ecparam -name prime256v1 -param_enc explicit -genkey -out explicit.key; self explicit
openssl ecparam -name secp224r1 -genkey -noout -out p224.key; self p224
openssl ecparam -name secp256k1 -genkey -noout -out secp256k1.key; self secp256k1
openssl ecparam -name brainpoolP256r1 -genkey -noout -out brainpool.key; self brainpool
openssl genpkey -algorithm ed448 -out ed448.key; self ed448
openssl genpkey -algorithm rsa-pss -pkeyopt rsa_keygen_bits:2048 -out rsapss.key 2>/dev/null; self rsapss
openssl dsaparam -genkey -noout -out dsa.key 2048 2>/dev/null; self dsa
openssl genpkey -algorithm ec -pkeyopt ec_paramgen_curve:P-256 -out plain.key; self plain
openssl pkcs8 -topk8 -in plain.key -passout pass:secret -out encrypted.key; cp plain.crt encrypted.crt
openssl rsa -in sha1.key -traditional -aes128 -passout pass:secret -out old-encrypted.key 2>/dev/null; cp sha1.crt old-encrypted.crt
openssl x509 -in plain.crt -trustout -addtrust serverAuth -setalias odd -out trusted.crt; cp plain.key trusted.key
openssl req -new -key plain.key -subj /CN=odd.example -out v1.csr
openssl x509 -req -in v1.csr -signkey plain.key -days $days -out v1.crt 2>/dev/null; cp plain.key v1.key; rm v1.csr
openssl pkcs12 -export -inkey plain.key -in plain.crt -name odd -passout pass: -out bag.p12
openssl pkcs12 -in bag.p12 -passin pass: -nokeys -out bag.crt; openssl pkcs12 -in bag.p12 -passin pass: -nocerts -nodes -out bag.key; rm bag.p12
openssl crl2pkcs7 -nocrl -certfile plain.crt -out pkcs7.crt; cp plain.key pkcs7.key
