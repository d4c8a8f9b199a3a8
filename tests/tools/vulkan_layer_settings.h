// ggml-vulkan.cpp names three types of VK_EXT_layer_settings, of Vulkan headers from 1.3.272 on.
// Debian 12 has older ones. The types are used with a validation layer only.
#ifdef __cplusplus
#include <cstdint>
#include <vector>
#include <vulkan/vulkan_core.h>
#ifndef VK_EXT_layer_settings
namespace vk {
enum class LayerSettingTypeEXT { eBool32 };
struct LayerSettingEXT {
    const char * layer;
    const char * name;
    LayerSettingTypeEXT type;
    uint32_t n_values;
    const void * values;
};
struct LayerSettingsCreateInfoEXT {
    int32_t type = 1000496000; // VK_STRUCTURE_TYPE_LAYER_SETTINGS_CREATE_INFO_EXT
    const void * next = nullptr;
    uint32_t n_settings;
    const LayerSettingEXT * settings;
    explicit LayerSettingsCreateInfoEXT(const std::vector<LayerSettingEXT> & all)
        : n_settings(all.size()), settings(all.data()) {}
};
} // namespace vk
#endif
#endif
