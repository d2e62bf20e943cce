"""Random numbers of `ccm/src/noise.rs`, computed in Python: the expected values of its tests and of the browser tests.

    python noise.py                # prints them; needs only Python

ChaCha with 8 rounds (Bernstein, https://cr.yp.to/chacha.html), 64-bit counter and stream; keys by PCG32 from a 64-bit
seed; integers below a bound by Canon's method with one correction; normal deviates by Box and Muller in double precision.
"""
import math
import struct

MASK32, MASK64 = 2**32 - 1, 2**64 - 1


def key(seed):
    """Eight words from a seed: PCG32 with the multiplier and increment of rand_core's `seed_from_u64`."""
    words, state = [], seed
    for _ in range(8):
        state = (state * 6364136223846793005 + 11634580027462260723) & MASK64
        shifted = (((state >> 18) ^ state) >> 27) & MASK32
        turn = state >> 59
        words.append(((shifted >> turn) | (shifted << (-turn & 31))) & MASK32)
    return words


def quarter_round(x, a, b, c, d):
    for target, other, place, turn in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)]:
        x[target] = (x[target] + x[other]) & MASK32
        mixed = x[place] ^ x[target]
        x[place] = ((mixed << turn) | (mixed >> (32 - turn))) & MASK32


def block(key, counter, stream):
    """Sixteen words of ChaCha8."""
    start = list(struct.unpack("<4I", b"expand 32-byte k")) + key
    start += [counter & MASK32, counter >> 32, stream & MASK32, stream >> 32]
    x = list(start)
    for _ in range(4):
        for column in range(4):
            quarter_round(x, column, 4 + column, 8 + column, 12 + column)
        for i in range(4):
            quarter_round(x, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return [(a + b) & MASK32 for a, b in zip(x, start)]


class Noise:
    def __init__(self, seed, stream):
        self.words = self.stream_of_words(key(seed), stream)
        self.spare = None

    @staticmethod
    def stream_of_words(key, stream):
        counter = 0
        while True:
            yield from block(key, counter, stream)
            counter += 1

    def next(self):
        low = next(self.words)
        return next(self.words) << 32 | low

    def uniform(self):
        return (self.next() >> 11) / 2**53

    def below(self, bound):
        high, low = divmod(self.next() * bound, 2**64)
        if low > 2**64 - bound:
            high += (low + (self.next() * bound >> 64)) >> 64
        return high

    def uniforms(self, count, bound):
        return [(2 * self.uniform() - 1) * bound for _ in range(count)]

    def normal(self):
        if self.spare is not None:
            value, self.spare = self.spare, None
            return value
        radius = math.sqrt(-2 * math.log(1 - self.uniform()))
        angle = 2 * math.pi * self.uniform()
        self.spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def permutation(self, count):
        order = list(range(count))
        for i in reversed(range(1, count)):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


def single(values):
    """Bit patterns in single precision."""
    return ", ".join(f"0x{struct.unpack('<I', struct.pack('<f', value))[0]:08x}" for value in values)


def byte(value):
    """A value in [-1, 1] as a byte of a picture, computed in single precision."""
    value = struct.unpack("<f", struct.pack("<f", value))[0]
    value = struct.unpack("<f", struct.pack("<f", value + 1))[0]
    return min(max(math.floor(value * 127.5 + 0.5), 0), 255)


for seed in [0, 7, MASK64]:
    noise = Noise(seed, 0)
    print(f"image_noise({seed}):", single(noise.normal() for _ in range(4)))
noise = Noise(7, 0)
values = [noise.normal() for _ in range(1000)]
print("image_noise(7), 996 to 999:", single(values[996:]))
for stream in [1, 1000, 1 << 40, MASK64]:
    print(f"normals of seed 7, stream {stream}:", single(Noise(7, stream).normal() for _ in range(1)))
noise = Noise(1, 2)
print("uniform:", [struct.unpack("<Q", struct.pack("<d", noise.uniform()))[0].to_bytes(8, "big").hex() for _ in range(4)])
print("uniforms within 0.5:", single(Noise(1, 3).uniforms(4, 0.5)))
noise = Noise(1, 4)
print("below:", [noise.below(bound) for bound in [1, 2, 10, 1000, 1 << 32, 1 << 53]])
noise = Noise(1, 5)
print("below 2**63 + 1:", [noise.below(2**63 + 1) for _ in range(6)])
print("permutation:", Noise(1, 6).permutation(12))
noise = Noise(7, 0)
print("picture of seed 7, 16 grey pixels:", [byte(noise.normal()) for _ in range(16)])
