// The oracle in C++: read the vectors, compute two operators, write the results.
//
//     g++ -std=c++17 -O2 attend.cpp -o attend
//     asap-ref oracle export vectors --drawn float64
//     ./attend vectors results                           all that is there: v1, v2 and the cases drawn from seeds
//     asap-ref oracle check-files results
//
// Written from the page alone, with nothing but the standard library: a .npz is a zip archive whose entries are stored
// as they are, an .npy is a line of text and the numbers, and the manifest has a case a line.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Array {
    std::vector<size_t> shape;
    std::vector<double> values;  // masks as 0 and 1
};
using Arrays = std::map<std::string, Array>;

// ------------------------------------------------------------------------------------------------------- the files

std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("no file " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

template <class T>
T at(const std::string& bytes, size_t place) {  // little-endian, as this machine is
    T x;
    std::memcpy(&x, bytes.data() + place, sizeof x);
    return x;
}

template <class T>
void take(Array& array, const std::string& bytes, size_t place, size_t count) {
    for (size_t i = 0; i < count; ++i) array.values.push_back(at<T>(bytes, place + i * sizeof(T)));
}

Array read_npy(const std::string& bytes) {
    const size_t start = 10 + at<uint16_t>(bytes, 8);
    const std::string header = bytes.substr(10, start - 10);
    Array array;
    size_t count = 1;
    std::string digits = header.substr(header.find("'shape': (") + 10);
    for (size_t i = 0, n = 0; digits[i] != ')'; ++i) {
        if (std::isdigit(digits[i])) n = 10 * n + (digits[i] - '0');
        if (std::isdigit(digits[i]) && !std::isdigit(digits[i + 1])) {
            array.shape.push_back(n);
            count *= n;
            n = 0;
        }
    }
    if (header.find("'<f4'") != std::string::npos) take<float>(array, bytes, start, count);
    if (header.find("'<f8'") != std::string::npos) take<double>(array, bytes, start, count);
    if (header.find("'|b1'") != std::string::npos) take<uint8_t>(array, bytes, start, count);
    return array;
}

Arrays read_npz(const std::string& path) {
    const std::string bytes = contents(path);
    Arrays found;
    for (size_t place = 0; bytes.compare(place, 4, "PK\3\4") == 0;) {  // local headers hold the true sizes
        const size_t size = at<uint32_t>(bytes, place + 18), name_length = at<uint16_t>(bytes, place + 26);
        const size_t body = place + 30 + name_length + at<uint16_t>(bytes, place + 28);
        const std::string name = bytes.substr(place + 30, name_length);
        found[name.substr(0, name.size() - 4)] = read_npy(bytes.substr(body, size));
        place = body + size;
    }
    return found;
}

void write_npy(const std::string& path, const Array& array) {
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::string header = "{'descr': '<f8', 'fortran_order': False, 'shape': (";
    for (size_t n : array.shape) header += std::to_string(n) + ", ";
    header += "), }";
    header.append(63 - (10 + header.size()) % 64, ' ').append("\n");  // numbers begin at a multiple of 64
    const auto length = static_cast<uint16_t>(header.size());
    std::ofstream file(path, std::ios::binary);
    file.write("\x93NUMPY\1\0", 8).write(reinterpret_cast<const char*>(&length), 2) << header;
    file.write(reinterpret_cast<const char*>(array.values.data()), 8 * array.values.size());
}

// --------------------------------------------------------------------------------------------------- the mathematics

// Masks may have size 1 in leading axes: a token's entry for problem number b, whose leading axes are those of q.
bool valid(const Arrays& in, const char* name, const Array& q, size_t b, size_t token) {
    const auto found = in.find(name);
    if (found == in.end()) return true;
    const auto& shape = found->second.shape;
    size_t place = 0, step = shape.back();
    for (size_t axis = q.shape.size() - 2; axis-- > 0; b /= q.shape[axis]) {
        if (shape[axis] > 1) place += step * (b % q.shape[axis]);
        step *= shape[axis];
    }
    return found->second.values[place + token] != 0;
}

// lse: g_j = -epsilon log sum_i exp((f_i + S_ij) / epsilon).  attend: sum_j softmax_j((S_ij + g_j) / epsilon) v_j.
Array solve(const std::string& op, const Arrays& in, double epsilon) {
    const Array &q = in.at("inputs/q"), &k = in.at("inputs/k");
    const size_t n = q.shape.end()[-2], m = k.shape.end()[-2], d = q.shape.back();
    const bool attends = op == "attend";
    const size_t p = attends ? in.at("inputs/v").shape.back() : 1;
    const size_t rows = attends ? n : m, others = attends ? m : n;  // what comes out, what is summed over
    const Array& bias = in.at(attends ? "inputs/key_dual" : "inputs/query_dual");
    const char* own = attends ? "inputs/query_mask" : "inputs/key_mask";
    const char* met = attends ? "inputs/key_mask" : "inputs/query_mask";

    Array out{q.shape, {}};
    out.shape.pop_back();
    out.shape.back() = rows;
    if (attends) out.shape.push_back(p);
    size_t problems = 1;
    for (size_t axis = 0; axis + 2 < q.shape.size(); ++axis) problems *= q.shape[axis];
    out.values.assign(problems * rows * p, 0.0);

    for (size_t b = 0; b < problems; ++b)
        for (size_t r = 0; r < rows; ++r) {
            if (!valid(in, own, q, b, r)) continue;
            double top = -std::numeric_limits<double>::infinity(), sum = 0;  // online: one pass over the others
            std::vector<double> mixed(p, 0.0);
            for (size_t o = 0; o < others; ++o) {
                if (!valid(in, met, q, b, o)) continue;  // before any product: padding may hold NaN
                const size_t i = attends ? r : o, j = attends ? o : r;
                double score = 0;
                for (size_t a = 0; a < d; ++a) score += q.values[(b * n + i) * d + a] * k.values[(b * m + j) * d + a];
                const double x = (score / std::sqrt(double(d)) + bias.values[b * others + o]) / epsilon;
                const double rescaled = x > top ? std::exp(top - x) : 1, share = x > top ? 1 : std::exp(x - top);
                top = std::max(top, x);
                sum = sum * rescaled + share;
                for (size_t c = 0; attends && c < p; ++c)
                    mixed[c] = mixed[c] * rescaled + share * in.at("inputs/v").values[(b * m + j) * p + c];
            }
            if (sum == 0) continue;  // nothing to meet
            if (!attends) out.values[b * rows + r] = -epsilon * (top + std::log(sum));
            for (size_t c = 0; attends && c < p; ++c) out.values[(b * rows + r) * p + c] = mixed[c] / sum;
        }
    return out;
}

// Of sum_j c_j g_j with the cotangent c of lse, by f_i: -sum_j c_j exp((f_i + S_ij + g_j) / epsilon).
Array query_dual_gradient(const Arrays& in, const Array& g, double epsilon) {
    const Array &q = in.at("inputs/q"), &k = in.at("inputs/k"), &f = in.at("inputs/query_dual");
    const Array& c = in.at("cotangents/key_dual");
    const size_t n = q.shape.end()[-2], m = k.shape.end()[-2], d = q.shape.back();
    Array out{f.shape, std::vector<double>(f.values.size(), 0.0)};
    for (size_t place = 0; place < f.values.size(); ++place) {
        const size_t b = place / n, i = place % n;
        for (size_t j = 0; j < m; ++j) {
            if (!valid(in, "inputs/query_mask", q, b, i) || !valid(in, "inputs/key_mask", q, b, j)) continue;
            double score = 0;
            for (size_t a = 0; a < d; ++a) score += q.values[place * d + a] * k.values[(b * m + j) * d + a];
            const double x = f.values[place] + score / std::sqrt(double(d)) + g.values[b * m + j];
            out.values[place] -= c.values[b * m + j] * std::exp(x / epsilon);
        }
    }
    return out;
}

int compute(const std::string& vectors, const std::string& results) {
    std::ifstream manifest(vectors + "/manifest.json");
    int computed = 0;
    for (std::string line; std::getline(manifest, line);) {  // a case is a line
        const size_t file = line.find("\"file\": \""), value = line.find("\"epsilon\": ");
        for (const char* op : {"lse", "attend"}) {
            const std::string start = std::string("{\"id\": \"") + op + "/";
            const size_t id = line.find(start);
            if (id == std::string::npos || file == std::string::npos) continue;
            const std::string name = line.substr(id + 8, line.find('"', id + 8) - id - 8);
            const std::string path = line.substr(file + 9, line.find('"', file + 9) - file - 9);
            const Arrays in = read_npz(vectors + "/" + path);
            const double epsilon = std::stod(line.substr(value + 11));
            const Array out = solve(op, in, epsilon);
            const std::string folder = results + "/" + name;
            write_npy(folder + (op[0] == 'l' ? "/key_dual.npy" : "/out.npy"), out);
            if (op[0] == 'l' && in.count("cotangents/key_dual"))  // where a gradient is asked for
                write_npy(folder + "/gradients/query_dual.npy", query_dual_gradient(in, out, epsilon));
            ++computed;
        }
    }
    return computed;
}

int main(int count, char** words) {
    if (count != 3) {
        std::cerr << "usage: attend VECTORS RESULTS\n";
        return 2;
    }
    int computed = 0;
    for (const auto& folder : std::filesystem::directory_iterator(words[1]))
        if (folder.is_directory()) computed += compute(folder.path().string(), words[2]);
    std::cout << computed << " cases\n";
    return computed ? 0 : 1;
}
