package qupath.lib.objects.classes

class PathClass {
    static Map<String, PathClass> known = [:]
    String name
    Integer color

    static PathClass fromString(String name, Integer color) { known.computeIfAbsent(name) { new PathClass(name: name, color: color) } }

    void setColor(Integer color) { this.color = color }

    String toString() { name }
}
